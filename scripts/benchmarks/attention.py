"""The gates of attention in one table: times as ratios, memory, and floors of this machine. The words name rows."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import asked, copy_rate, interleaved, matrix_rate
from famx.analysis import cost
from famx.registry import build

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from reference.relative_force import paired

D, H, W = 256, 8, 128


class Timed(NamedTuple):
    """A call, and what it must at least do.

    Args:
        inputs: whose gradients its backward pass finds.
        flops: of its matrix products, forward.
    """

    call: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    flops: float


def main(words: list[str]) -> None:
    """A line for each comparison, of all rows when there are no words."""
    rows = {row.__name__: row for row in ROWS}
    chosen = asked(words, rows)
    rates = matrix_rate(), copy_rate()
    print(
        f"products at {rates[0] / 1e9:.0f} GFLOP/s, copies at {rates[1] / 1e9:.1f} GB/s, {torch.get_num_threads()}"
    )
    print(
        f"threads, d={D}, h={H}; the floor: FLOPs over the one rate + bytes of what goes in and out over the other"
    )
    print(f"{'':72}{'min/min':>8}{'median':>8}  {'gate':10}{'ms':>8}{'floor':>8}")
    for name in chosen:
        rows[name](rates)


def relative_force(rates: tuple[float, float]) -> None:
    """Beside its plain form, the whole multihead block, and the mixing alone of one such; and its temporaries."""
    short = torch.randn(1, 256, D, requires_grad=True)
    block = built("relative_force")
    fast, plain = whole(block, short), whole(block, short, partial(paired, block))
    compared(
        "relative_force s=256: plain form / it",
        fast,
        plain,
        rates,
        (None, ">= 80"),
        inverse=True,
        rounds=5,
    )
    held = cost.peak(partial(cost.forward, built("relative_force", hop_levels=1), short))
    name = "relative_force s=256, one hop: peak / b s^2 (h+1) 4 bytes"
    print(f"{name:72}{held / (256**2 * (H + 1) * 4):8.2f}{'<= 4':>14}")
    x, mixing = torch.randn(1, 512, D, requires_grad=True), sdpa(512)
    multihead = whole(built("multihead"), x)
    for hops, gate in ((1, "<= 2"), (3, "<= 12")):
        timed = whole(built("relative_force", hop_levels=hops), x)
        name = f"relative_force s=512, {hops} hops"
        compared(
            f"{name} / multihead, block by block", timed, multihead, rates, (gate, ""), rounds=30
        )
        compared(
            f"{name} / SDPA without projections", timed, mixing, rates, (gate, None), rounds=30
        )


def sliding_window(rates: tuple[float, float]) -> None:
    """The mixing alone, of one sequence of 4096 with a window of 128."""
    s, h = 4096, 4
    distance = torch.arange(s)[:, None] - torch.arange(s)
    for causal in (True, False):
        near = (distance < W) & (distance > (-1 if causal else -W))
        dense = sdpa(s, near, h)
        block, flops = (
            built("sliding_window", causal, h, windows=(W,)),
            4 * s * (W if causal else 2 * W - 1) * D,
        )
        banded = Timed(partial(block.mix, *dense.inputs, None, causal), dense.inputs, flops)
        name = f"sliding_window s={s} w={W}{' causal' * causal}: dense masked SDPA / it"
        compared(name, banded, dense, rates, (">= 5", ">= 7"), inverse=True, rounds=5)


def growth(rates: tuple[float, float]) -> None:
    """The whole block of four times the length."""
    for name, hyper in (("sliding_window", {"windows": (W,)}), ("adaptive_span", {"max_span": W})):
        block = built(name, True, **hyper)
        long, short = (whole(block, torch.randn(1, s, D, requires_grad=True)) for s in (4096, 1024))
        compared(
            f"{name} up to {W} away: time(4096) / time(1024)", long, short, rates, ("<= 5", "<= 5")
        )


def long(rates: tuple[float, float]) -> None:
    """Blocks of several parts beside the plain one at length 1500."""
    x = torch.randn(1, 1500, D, requires_grad=True)
    multihead = whole(built("multihead"), x)
    for name in ("integrated", "worm"):
        compared(
            f"{name} t=1500 / multihead",
            whole(built(name), x),
            multihead,
            rates,
            ("<= 4", "<= 4"),
            rounds=5,
        )


def myelinated(rates: tuple[float, float]) -> None:
    """With every node on, beside as many multihead blocks, and beside as many whole layers."""
    x, n = torch.randn(8, 150, D, requires_grad=True), 3
    block = built("myelinated", n_layers=n, threshold=0.0)
    blocks = nn.Sequential(*(built("multihead") for _ in range(n)))
    layers = nn.Sequential(
        *(cost.build_alone("layer", "prenorm", cost.Sizes(D, H, 150)) for _ in range(n))
    )
    for name, plain, gates in (
        ("multihead blocks", blocks, ("", "")),
        ("prenorm layers", layers, ("<= 1.3", "<= 1.3")),
    ):
        title = f"myelinated b=8 t=150, all nodes on / {n} {name}"
        compared(title, whole(block, x), whole(plain, x), rates, gates, rounds=15)


ROWS = (relative_force, sliding_window, growth, long, myelinated)


def built(name: str, causal: bool = False, n_heads: int = H, **hyper: object) -> nn.Module:
    rotary = build("rotary", {"name": "rope"}, head_dim=D // n_heads)
    return build(
        "attention",
        {"name": name, **hyper},
        d_model=D,
        n_heads=n_heads,
        rotary=rotary,
        causal=causal,
    )


def whole(block: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Timed:
    """A block with its projections, or another way to compute what it does."""
    flops = cost.flops(block.eval(), x[:1]) * x.shape[0] * x.shape[1]
    return Timed(partial(call or block.train(), x), (x, *block.parameters()), flops)


def sdpa(s: int, mask: Tensor | None = None, n_heads: int = H) -> Timed:
    """Torch's mixing of values alone, queries, keys and values given."""
    inputs = tuple(torch.randn(1, n_heads, s, D // n_heads, requires_grad=True) for _ in range(3))
    return Timed(partial(scaled_dot_product_attention, *inputs, mask), inputs, 4 * s * s * D)


def compared(
    name: str,
    part: Timed,
    other: Timed,
    rates: tuple[float, float],
    gates: tuple[str | None, str | None],
    inverse: bool = False,
    rounds: int = 7,
) -> None:
    """Lines of the table, forward and with the backward pass; none where the gate is None.

    Args:
        inverse: the ratio is of the other's time to the part's.
    """

    def forward(timed: Timed) -> Callable[[int], object]:
        return torch.no_grad()(lambda _: timed.call())

    def backward(timed: Timed) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(timed.call().sum(), timed.inputs, allow_unused=True)

    moved = 4 * sum(x.numel() for x in part.inputs) + 4 * part.inputs[0].numel()
    # a backward pass has twice the products and copies of a forward pass
    for kind, turned, gate, passes in (
        ("forward", forward, gates[0], 1),
        ("and backward", backward, gates[1], 3),
    ):
        if gate is None:
            continue
        calls = turned(part), turned(other)
        for call in calls:
            call(0)
        spent = interleaved(*calls, rounds)
        ratios = [b / a if inverse else a / b for a, b in zip(*spent, strict=True)]
        least = min(spent[1]) / min(spent[0]) if inverse else min(spent[0]) / min(spent[1])
        floor = passes * (part.flops / rates[0] + moved / rates[1])
        times = f"{1e3 * min(spent[0]):8.1f}{1e3 * floor:8.1f}"
        print(
            f"{name}, {kind}"[:72].ljust(72)
            + f"{least:8.2f}{median(ratios):8.2f}  {gate:10}{times}",
            flush=True,
        )
