"""Each rotary in units of one elementwise addition of the same tensor, beside what moving its bytes would take."""

import torch

from benchmarks import copy_rate, interleaved, told
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
    x = torch.randn(B, H, T, K)
    spent, _ = interleaved(lambda i: x + x, lambda i: None, rounds)
    size = x.numel() * x.element_size()
    floor = 2 * size / copy_rate(size >> 20) / min(spent)  # x is read once and written once
    print(f"x is {B} x {H} x {T} x {K}, x + x takes {1e3 * min(spent):.2f} ms; floor {floor:.2f}")
    for config in [{"name": name} for name in names("rotary")] + list(ALSO):
        if words and config["name"] not in words:
            continue
        rotary = build("rotary", config, head_dim=K)
        for _ in range(3):
            rotary(x)
        title = " ".join(key if value is True else f"{value}"[:20] for key, value in config.items())
        told(
            title, interleaved(lambda i, r=rotary: r(x), lambda i: x + x, rounds), f"<= {GATES.get(config['name'], 15)}"
        )
