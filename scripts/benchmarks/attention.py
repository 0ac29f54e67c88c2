"""Banded attention beside dense attention under the same mask, and how time grows. The words name rows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import Spent, interleaved, matrix_rate, told
from famx.registry import build

D, H = 256, 4


def sliding_window(rate: float) -> None:
    """The mixing alone, of one sequence of 4096 with a window of 128."""
    s, w = 4096, 128
    for causal in (True, False):
        block = built("sliding_window", causal, windows=(w,))
        q, k, v = (torch.randn(1, H, s, D // H, requires_grad=True) for _ in range(3))
        distance = torch.arange(s)[:, None] - torch.arange(s)
        near = (distance < w) & (distance > (-1 if causal else -w))
        keys = w if causal else 2 * w - 1
        name = f"sliding_window s={s} w={w}{' causal' * causal}: dense masked SDPA / it"
        both = (
            lambda q=q, k=k, v=v, near=near: scaled_dot_product_attention(q, k, v, near),
            lambda q=q, k=k, v=v, block=block, causal=causal: block.mix(q, k, v, None, causal),
        )
        compared(name, both, (q, k, v), floor=4 * s * keys * D / rate, gates=(">= 5, reach 8", ">= 7, reach 12"))


def growth(rate: float) -> None:
    """The whole block, projections and all, of four times the length."""
    for name, hyper in (("sliding_window", {"windows": (128,)}), ("adaptive_span", {"max_span": 128})):
        block = built(name, True, **hyper)
        long, short = torch.randn(1, 4096, D), torch.randn(1, 1024, D)
        calls = (lambda block=block, x=long: block(x)), (lambda block=block, x=short: block(x))
        compared(
            f"{name} up to 128 away: time(4096) / time(1024)",
            calls,
            tuple(block.parameters()),
            gates=("<= 5, reach 4.2",) * 2,
        )


ROWS = (sliding_window, growth)


def main(words: list[str]) -> None:
    """Runs the rows that the words name, or all."""
    rate = matrix_rate()
    print(f"matrix products at {rate / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads, d={D}, h={H}")
    for row in ROWS:
        if not words or row.__name__ in words:
            row(rate)


def built(name: str, causal: bool, **hyper: object) -> nn.Module:
    rotary = build("rotary", {"name": "rope"}, head_dim=D // H)
    return build("attention", {"name": name, **hyper}, d_model=D, n_heads=H, rotary=rotary, causal=causal)


def compared(
    name: str,
    calls: tuple[Callable[[], Tensor], Callable[[], Tensor]],
    inputs: tuple[Tensor, ...],
    gates: tuple[str, str] = ("", ""),
    floor: float = 0.0,
    rounds: int = 7,
) -> None:
    """Two calls in turns, forward, and with the gradients of `inputs`. The floor: seconds of the second's products."""

    def forward(call: Callable[[], Tensor]) -> Callable[[int], object]:
        return torch.no_grad()(lambda _: call())

    def backward(call: Callable[[], Tensor]) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(call().sum(), inputs)

    # a backward pass has twice the products of a forward pass
    for kind, turned, gate, least in (
        ("forward", forward, gates[0], floor),
        ("backward too", backward, gates[1], 3 * floor),
    ):
        spent = measured(*(turned(call) for call in calls), rounds)
        told(f"{name}, {kind}", spent, gate)
        if least:
            print(f"    {1e3 * min(spent[1]):.1f} ms, {min(spent[1]) / least:.1f} times the floor of its products")


def measured(one: Callable[[int], object], other: Callable[[int], object], rounds: int) -> Spent:
    """Seconds of each, after a call that warms up."""
    one(0), other(0)
    return interleaved(one, other, rounds)
