"""Attention blocks on a GPU in bf16, in units of plain attention."""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._gpu_timing import Page, milliseconds
from famx.analysis.cost import Sizes, build_alone, flops, peak_on_cuda
from famx.notation import UserError
from famx.registry import names

SIZES = Sizes(d_model=512, n_heads=8, t=2048, device="cuda")
ROWS = 8
HEAVY = ("relative_force", "taylor")


def forward(block: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        block(x)


def train(block: nn.Module, x: Tensor) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        output = block(x)
    output.float().sum().backward()
    block.zero_grad()


def main(page: Page) -> None:
    """Prints a row for the forward pass, for both passes and for the memory of each block."""
    page.section(f"blocks, {ROWS} x {SIZES.t} positions of {SIZES.d_model}, in units of multihead")
    x = torch.randn(ROWS, SIZES.t, SIZES.d_model, device="cuda", requires_grad=True)
    baseline = build_alone("attention", "multihead", SIZES)
    baseline_flops = flops(baseline.eval(), x[:1])
    baseline_bytes = peak_on_cuda(partial(train, baseline.train(), x))
    for name in names("attention"):
        try:
            block = build_alone("attention", name, SIZES)
            _rows(page, name, block, baseline, x, baseline_flops, baseline_bytes)
        except (UserError, RuntimeError) as error:
            print(f"  {name}: {str(error).partition(chr(10))[0]}")
        torch.cuda.empty_cache()


def _rows(
    page: Page,
    name: str,
    block: nn.Module,
    baseline: nn.Module,
    x: Tensor,
    baseline_flops: float,
    baseline_bytes: int,
) -> None:
    share = flops(block.eval(), x[:1]) / baseline_flops
    timed = partial(milliseconds, calls=4, warmup=3)
    forward_ms, plain_ms = timed(
        partial(forward, block.eval(), x), partial(forward, baseline.eval(), x)
    )
    train_ms, plain_train_ms = timed(
        partial(train, block.train(), x), partial(train, baseline.train(), x)
    )
    memory = peak_on_cuda(partial(train, block, x)) / baseline_bytes
    is_heavy = name in HEAVY
    notes = (f"{forward_ms:.2f} ms", f"FLOPs {share:.2f}")
    page.row(f"{name}: forward", forward_ms / plain_ms, *notes, most=5 if is_heavy else 0)
    page.row(f"{name}: memory", memory, most=3 if is_heavy else 0)
    # the block's own share of FLOPs counts where it is more than that of plain attention
    ratio = train_ms / plain_train_ms
    gate = 0.0 if is_heavy else 2 * max(share, 1.0)
    page.row(f"{name}: forward and backward", ratio, f"{train_ms:.2f} ms", most=gate)
