"""Attention blocks: times as ratios, memory, and floors of this machine: attention [ROW...]"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import copy_rate, interleaved, load_reference, matrix_rate, select_rows
from famx.analysis import cost
from famx.registry import build

D_MODEL = 256
N_HEADS = 8
WINDOW = 128
NAME_WIDTH = 72


class Rates(NamedTuple):
    """The highest rates of this machine: FLOPs and bytes per second."""

    flops: float
    bytes: float


class Timed(NamedTuple):
    """A call and what it has to compute.

    Args:
        call: returns the output.
        inputs: tensors whose gradients the backward pass computes.
        flops: of its matrix products, forward.
    """

    call: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    flops: float

    def floor(self, rates: Rates) -> float:
        """Returns the seconds that products and copies of inputs and outputs take at least."""
        moved_bytes = 4 * sum(x.numel() for x in self.inputs) + 4 * self.inputs[0].numel()
        return self.flops / rates.flops + moved_bytes / rates.bytes


class Gates(NamedTuple):
    """Accepted ratios, "" for any; None where the pass is not measured."""

    forward: str | None
    with_backward: str | None


def main(words: list[str]) -> None:
    """Prints a line for each comparison of the rows that the words name, all without words."""
    rows = {row.__name__: row for row in ROWS}
    selected = select_rows(words, rows)
    rates = Rates(matrix_rate(), copy_rate())
    print(
        f"products at {rates.flops / 1e9:.0f} GFLOP/s, copies at {rates.bytes / 1e9:.1f} GB/s, "
        f"{torch.get_num_threads()} threads, d_model={D_MODEL}, n_heads={N_HEADS}; "
        "floor: the FLOPs and the bytes of inputs and outputs at these rates"
    )
    print(f"{'':{NAME_WIDTH}}{'min/min':>8}{'median':>8}  {'gate':10}{'ms':>8}{'floor':>8}")
    for name in selected:
        rows[name](rates)


def relative_force(rates: Rates) -> None:
    """Compares with its plain form, with multihead and with its mixing; measures its memory."""
    # the plain form
    short = torch.randn(1, 256, D_MODEL, requires_grad=True)
    block = build_block("relative_force")
    fast = timed_block(block, short)
    plain_form = partial(load_reference("relative_force").forward_pairs, block)
    plain = timed_block(block, short, plain_form)
    title = "relative_force s=256: plain form / it"
    compare(title, fast, plain, rates, Gates(None, ">= 80"), inverse=True, rounds=5)

    # temporary memory
    one_hop = build_block("relative_force", hop_levels=1)
    peak = cost.peak(partial(cost.forward, one_hop, short))
    title = "relative_force s=256, one hop: peak / b s^2 (h+1) 4 bytes"
    ratio = peak / (256**2 * (N_HEADS + 1) * 4)
    print(f"{title:{NAME_WIDTH}}{ratio:8.2f}{'<= 4':>14}")

    # the plain block and its mixing
    x = torch.randn(1, 512, D_MODEL, requires_grad=True)
    mixing = timed_sdpa(512)
    multihead = timed_block(build_block("multihead"), x)
    for hops, gate in ((1, "<= 2"), (3, "<= 12")):
        block = timed_block(build_block("relative_force", hop_levels=hops), x)
        title = f"relative_force s=512, {hops} hops"
        for name, baseline, gates in (
            ("multihead, block by block", multihead, Gates(gate, "")),
            ("SDPA without projections", mixing, Gates(gate, None)),
        ):
            compare(f"{title} / {name}", block, baseline, rates, gates, rounds=30)


def sliding_window(rates: Rates) -> None:
    """Compares the mixing of one sequence of 4096 in a window of 128 with masked attention."""
    s = 4096
    n_heads = 4
    distance = torch.arange(s)[:, None] - torch.arange(s)
    for causal in (True, False):
        # keys of each query
        within = (distance < WINDOW) & (distance > (-1 if causal else -WINDOW))
        dense = timed_sdpa(s, within, n_heads)
        block = build_block("sliding_window", causal, n_heads, windows=(WINDOW,))
        keys = WINDOW if causal else 2 * WINDOW - 1
        mix = partial(block.mix, *dense.inputs, None, causal)
        banded = Timed(mix, dense.inputs, flops=4 * s * keys * D_MODEL)
        title = f"sliding_window s={s} w={WINDOW}{' causal' * causal}: dense masked SDPA / it"
        compare(title, banded, dense, rates, Gates(">= 5", ">= 7"), inverse=True, rounds=5)


def growth(rates: Rates) -> None:
    """Compares blocks whose time is linear in the length on four times the length."""
    for name, hyperparameters in (
        ("sliding_window", {"windows": (WINDOW,)}),
        ("adaptive_span", {"max_span": WINDOW}),
    ):
        block = build_block(name, True, **hyperparameters)
        long = timed_block(block, torch.randn(1, 4096, D_MODEL, requires_grad=True))
        short = timed_block(block, torch.randn(1, 1024, D_MODEL, requires_grad=True))
        title = f"{name} up to {WINDOW} away: time(4096) / time(1024)"
        compare(title, long, short, rates, Gates("<= 5", "<= 5"))


def long(rates: Rates) -> None:
    """Compares blocks of several parts with multihead at length 1500."""
    x = torch.randn(1, 1500, D_MODEL, requires_grad=True)
    multihead = timed_block(build_block("multihead"), x)
    for name in ("integrated", "worm"):
        block = timed_block(build_block(name), x)
        title = f"{name} t=1500 / multihead"
        compare(title, block, multihead, rates, Gates("<= 4", "<= 4"), rounds=5)


def myelinated(rates: Rates) -> None:
    """Compares, with all nodes open, with as many multihead blocks and with as many layers."""
    n = 3
    # a threshold of 0 opens every node
    x = torch.randn(8, 150, D_MODEL, requires_grad=True)
    block = build_block("myelinated", n_layers=n, threshold=0.0)
    blocks = nn.Sequential(*(build_block("multihead") for _ in range(n)))
    sizes = cost.Sizes(D_MODEL, N_HEADS, 150)
    layers = nn.Sequential(*(cost.build_alone("layer", "prenorm", sizes) for _ in range(n)))
    for name, baseline, gates in (
        ("multihead blocks", blocks, Gates("", "")),
        ("prenorm layers", layers, Gates("<= 1.3", "<= 1.3")),
    ):
        title = f"myelinated b=8 t=150, all nodes on / {n} {name}"
        compare(title, timed_block(block, x), timed_block(baseline, x), rates, gates, rounds=15)


ROWS = (relative_force, sliding_window, growth, long, myelinated)


def build_block(
    name: str, causal: bool = False, n_heads: int = N_HEADS, **hyperparameters: object
) -> nn.Module:
    rotary = build("rotary", {"name": "rope"}, head_dim=D_MODEL // n_heads)
    return build(
        "attention",
        {"name": name, **hyperparameters},
        d_model=D_MODEL,
        n_heads=n_heads,
        rotary=rotary,
        causal=causal,
    )


def timed_block(
    block: nn.Module, x: Tensor, plain_form: Callable[[Tensor], Tensor] | None = None
) -> Timed:
    """Returns the call of a block on x, or of another form of what it computes."""
    # counted for one sample
    flops = cost.flops(block.eval(), x[:1]) * x.shape[0] * x.shape[1]
    return Timed(partial(plain_form or block.train(), x), (x, *block.parameters()), flops)


def timed_sdpa(s: int, mask: Tensor | None = None, n_heads: int = N_HEADS) -> Timed:
    """Returns torch's mixing of values, without projections."""
    shape = (1, n_heads, s, D_MODEL // n_heads)
    inputs = tuple(torch.randn(shape, requires_grad=True) for _ in range(3))
    mix = partial(scaled_dot_product_attention, *inputs, mask)
    return Timed(mix, inputs, flops=4 * s * s * D_MODEL)


def compare(
    name: str,
    part: Timed,
    baseline: Timed,
    rates: Rates,
    gates: Gates,
    *,
    inverse: bool = False,
    rounds: int = 7,
) -> None:
    """Prints a line for the pass forward and one that includes the backward pass.

    Args:
        inverse: prints the baseline's time in units of the part's.
    """

    def forward(timed: Timed) -> Callable[[int], object]:
        return torch.no_grad()(lambda _: timed.call())

    def with_backward(timed: Timed) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(timed.call().sum(), timed.inputs, allow_unused=True)

    # a backward pass has twice the products and copies of a forward pass
    for title, make_call, gate, n_passes in (
        ("forward", forward, gates.forward, 1),
        ("and backward", with_backward, gates.with_backward, 3),
    ):
        if gate is None:
            continue
        # timed after a first call of each
        call = make_call(part)
        baseline_call = make_call(baseline)
        call(0)
        baseline_call(0)
        timings = interleaved(call, baseline_call, rounds)
        numerators, denominators = reversed(timings) if inverse else timings
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        fastest = min(numerators) / min(denominators)
        # the time and its floor are of the part
        floor = n_passes * part.floor(rates)
        line = f"{name}, {title}"[:NAME_WIDTH].ljust(NAME_WIDTH)
        line += f"{fastest:8.2f}{median(ratios):8.2f}  {gate:10}"
        line += f"{1e3 * min(timings[0]):8.1f}{1e3 * floor:8.1f}"
        print(line, flush=True)
