"""Each rotary in units of an addition of the same tensor, with the floor of bytes and products."""

from statistics import median

import torch

from benchmarks import copy_rate, interleaved, matrix_rate, select_rows
from famx.analysis.cost import flops
from famx.registry import build, names

BATCH = 4
N_HEADS = 4
T = 1024
HEAD_DIM = 64
GATES = {"rope": 6, "givens": 6, "quaternion": 6, "compact": 6}
DEFAULT_GATE = 15
# givens with each channel of the first half in two pairs
PAIRS = [channel + shift for channel in range(HEAD_DIM // 2) for shift in (0, HEAD_DIM // 2)]
VARIANTS = (
    {"name": "rope", "learned": True},
    {"name": "compact", "learned_freq": True},
    {"name": "givens", "pairs": PAIRS},
    {"name": "quaternion", "learned": True},
    {"name": "quaternion", "channels": 3},
)


@torch.inference_mode()
def main(words: list[str], rounds: int = 60) -> None:
    """Prints ratios of the rotaries that the words name, all without words."""
    # the floor: x is copied, at the rates of this machine
    selected = select_rows(words, names("rotary"))
    x = torch.randn(BATCH, N_HEADS, T, HEAD_DIM)
    n_bytes = x.numel() * x.element_size()
    flops_per_second = matrix_rate()
    copy_seconds = 2 * n_bytes / copy_rate(n_bytes >> 20)  # x is read once and written once
    print(
        f"x is {BATCH} x {N_HEADS} x {T} x {HEAD_DIM}; floor: {1e3 * copy_seconds:.2f} ms to copy "
        f"it, FLOPs at {flops_per_second / 1e9:.0f} GFLOP/s"
    )
    print(f"{'of x + x':40}{'min/min':>8}{'median':>8}  {'gate':6}{'ms':>8}{'floor':>8}")
    # each part, and variants with other hyperparameters
    configs = [{"name": name} for name in selected]
    configs += [variant for variant in VARIANTS if variant["name"] in selected]
    for config in configs:
        rotary = build("rotary", config, head_dim=HEAD_DIM)
        # tables of angles are cached by the first calls
        for _ in range(3):
            rotary(x)
        timings = interleaved(lambda _, rotary=rotary: rotary(x), lambda _: x + x, rounds)
        seconds, baseline_seconds = timings
        fastest = min(seconds) / min(baseline_seconds)
        middle = median(a / b for a, b in zip(*timings, strict=True))
        floor = copy_seconds + flops(rotary, x) * T / flops_per_second
        gate = f"<= {GATES.get(config['name'], DEFAULT_GATE)}"
        print(
            f"{_title(config):40}{fastest:8.2f}{middle:8.2f}  {gate:6}"
            f"{1e3 * min(seconds):8.2f}{1e3 * floor:8.2f}",
            flush=True,
        )


def _title(config: dict[str, object]) -> str:
    words = []
    for key, value in config.items():
        words.append(key if value is True else f"{value}"[:20])
    return " ".join(words)
