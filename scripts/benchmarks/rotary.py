"""Each rotary in units of one elementwise addition of the same tensor, beside the floor of its bytes and products."""

from statistics import median

import torch

from benchmarks import asked, copy_rate, interleaved, matrix_rate
from famx.analysis.cost import flops
from famx.registry import build, names

B, H, T, K = 4, 4, 1024, 64
GATES = dict.fromkeys(("rope", "givens", "quaternion", "compact"), 6)
ALSO = (
    {"name": "rope", "learned": True},
    {"name": "compact", "learned_freq": True},
    {"name": "givens", "pairs": [i + j for i in range(K // 2) for j in (0, K // 2)]},
    {"name": "quaternion", "learned": True},
    {"name": "quaternion", "channels": 3},
)


@torch.inference_mode()
def main(words: list[str], rounds: int = 60) -> None:
    """Prints forward ratios; the words are names of rotaries, all when there are none."""
    chosen = asked(words, names("rotary"))
    x = torch.randn(B, H, T, K)
    size, products = x.numel() * x.element_size(), matrix_rate()
    copies = 2 * size / copy_rate(size >> 20)  # x is read once and written once
    print(
        f"x is {B} x {H} x {T} x {K}; floor: {1e3 * copies:.2f} ms to copy it, FLOPs at {products / 1e9:.0f} GFLOP/s"
    )
    print(f"{'of x + x':40}{'min/min':>8}{'median':>8}  {'gate':6}{'ms':>8}{'floor':>8}")
    for config in [{"name": name} for name in chosen] + [
        also for also in ALSO if also["name"] in chosen
    ]:
        rotary = build("rotary", config, head_dim=K)
        for _ in range(3):
            rotary(x)
        spent = interleaved(lambda i, r=rotary: r(x), lambda i: x + x, rounds)
        ratio, middle = (
            min(spent[0]) / min(spent[1]),
            median(a / b for a, b in zip(*spent, strict=True)),
        )
        title = " ".join(key if value is True else f"{value}"[:20] for key, value in config.items())
        gate, floor = (
            f"<= {GATES.get(config['name'], 15)}",
            copies + flops(rotary, x) * T / products,
        )
        times = f"{1e3 * min(spent[0]):8.2f}{1e3 * floor:8.2f}"
        print(f"{title:40}{ratio:8.2f}{middle:8.2f}  {gate:6}{times}", flush=True)
