"""A page of what a GPU does with famx, beside torch and the device's limits: gpu [SECTION...]"""

import time
from functools import partial

import torch

from benchmarks import _gpu_blocks, _gpu_optim, _gpu_training, select_rows
from benchmarks._gpu_timing import Page, copy_rate, matrix_rate
from famx.notation import UserError


def main(words: list[str]) -> None:
    """Prints the rows of the sections that the words name, all without words.

    Raises:
        UserError: there is no GPU, or no such section.
    """
    if not torch.cuda.is_available():
        raise UserError("scripts/benchmark gpu: there is no CUDA device on this machine")
    # one of several runs at once, see `packed`
    if words[:1] == ["child"]:
        _gpu_training.child(words[1])
        return
    started = time.perf_counter()
    copied = copy_rate()
    multiplied = matrix_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"copies {copied / 1e9:,.0f} GB/s, bf16 products {multiplied / 1e12:,.0f} TFLOP/s")
    page = Page()
    sections = {
        "optim": partial(_gpu_optim.main, page, copied),
        "speech": partial(_gpu_training.speech, page),
        "lm": partial(_gpu_training.language_model, page, multiplied),
        "conformer": partial(_gpu_training.conformer, page),
        "blocks": partial(_gpu_blocks.main, page),
        "packed": partial(_gpu_training.packed, page),
    }
    for name in select_rows(words, sections):
        sections[name]()
        print(f"  ({time.perf_counter() - started:.0f} s so far)")
    page.close()
