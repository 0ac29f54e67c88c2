"""relative_force against its plain form and multihead, its temporaries; integrated and worm against multihead."""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import copy_rate, interleaved, matrix_rate, told
from famx.attention.relative_force import TERMS
from famx.measure import forward, peak
from famx.registry import build

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from reference.relative_force import paired

D, H = 256, 8


def main(words: list[str]) -> None:
    """Prints ratios, and the floor that this machine's arithmetic and copying set. No words are known."""
    block, x = built("relative_force"), torch.randn(1, 256, D)
    pairs = partial(paired, block)
    told("relative_force, plain / fast, forward and backward, s=256", trained(pairs, block, x, 5), ">= 80")
    one_hop, multihead = built("relative_force", hop_levels=1), built("multihead")
    held = peak(partial(forward, one_hop, x)) / (x.shape[1] ** 2 * (H + 1) * 4)
    print(f"peak temporaries, one hop: {held:.2f} of b s^2 (h+1) 4 bytes (gate <= 4)")
    x = torch.randn(1, 512, D)
    for hops, layer, gate in ((1, one_hop, "<= 2"), (3, block, "<= 12")):
        with torch.no_grad():
            spent = interleaved(lambda _, layer=layer: layer(x), lambda _: multihead(x), 40)
        told(f"relative_force of {hops} hops / multihead, forward, s=512", spent, gate)
        floor = (2 * D + 2 * D + 2 * H * TERMS) * 512**2 / matrix_rate()
        print(f"  floor: {1e3 * (floor + 2 * H * 512**2 * 4 / copy_rate()):.2f} ms, taken {1e3 * min(spent[0]):.2f} ms")
    x = torch.randn(1, 1500, D)
    for name in ("integrated", "worm"):
        told(f"{name} / multihead, forward and backward, t=1500", trained(built(name), multihead, x, 5), "<= 4")


def built(name: str, **hyper: object) -> nn.Module:
    """A block of the benchmark's sizes."""
    rotary = build("rotary", {"name": "rope"}, head_dim=D // H)
    return build("attention", {"name": name, **hyper}, d_model=D, n_heads=H, rotary=rotary, causal=False)


def trained(one: nn.Module, other: nn.Module, x: Tensor, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of forward and backward."""
    x = x.requires_grad_()
    one(x).sum().backward(), other(x).sum().backward()
    return interleaved(lambda _: one(x).sum().backward(), lambda _: other(x).sum().backward(), rounds)
