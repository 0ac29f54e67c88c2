"""What a part costs, in turns with the usual part of its room: parameters, FLOPs, time, memory, growth with length."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from famx.nn.hooks import set_observed
from famx.notation import UserError
from famx.registry import build, names, suggest

BASELINE = {
    "attention": "multihead",
    "rotary": "rope",
    "norm": "layernorm",
    "feedforward": "gelu",
    "layer": "prenorm",
}
LENGTHS = (256, 1024, 2048, 4096)  # growth is measured from the first to the last
MEMORY = 4e9  # bytes that a pass of that last length may take; where it takes more, a shorter one is the last
ROUNDS = 15

Spent = tuple[list[float], list[float]]


class Sizes(NamedTuple):
    """Of what is measured: one sequence of `t` positions."""

    d_model: int
    n_heads: int
    t: int
    causal: bool = False


class Cost(NamedTuple):
    """
    Args:
        flops: expected for a position in evaluation; elementwise operations count nothing.
        forward: seconds of a pass in evaluation.
        training: seconds of a pass forward and backward.
        memory: the most bytes that such a pass allocates at once, gradients included.
    """

    parameters: float
    flops: float
    forward: float
    training: float
    memory: float


def profile_room(room: str, sizes: Sizes) -> Iterator[tuple[str, tuple[Cost, Cost, str] | str]]:
    """Of each part of a room, the usual one first: its costs, the usual part's beside it, and how its time grows.

    In place of those, why a part cannot be measured.

    Raises:
        UserError: nothing in the room is measured, or its usual part refuses the sizes.
    """
    if room not in BASELINE:
        raise UserError(
            f"--measure: the parts of the room {room} are not measured{suggest(room, BASELINE)}"
        )
    if min(sizes.d_model, sizes.n_heads) < 1 or sizes.t < 2:
        raise UserError(
            f"--measure: d_model, n_heads and t must be at least 1, 1 and 2, not {sizes[:3]}"
        )
    usual = build_alone(room, BASELINE[room], sizes)
    for name in [BASELINE[room], *(name for name in names(room) if name != BASELINE[room])]:
        try:
            part = build_alone(room, name, sizes)
        except UserError as error:
            yield name, str(error)
            continue
        yield (
            name,
            (
                *profile_pair(part, usual, example_input(room, sizes)),
                growth(part, partial(example_input, room, sizes)),
            ),
        )


def build_alone(room: str, name: str, sizes: Sizes) -> nn.Module:
    """A part, in the company of usual ones."""
    torch.manual_seed(0)
    given = {"norm": {"d_model": sizes.d_model}, "feedforward": {"d_model": sizes.d_model}}
    given["rotary"] = {"head_dim": sizes.d_model // sizes.n_heads}
    rotary = build("rotary", {"name": BASELINE["rotary"]}, **given["rotary"])
    given["attention"] = {
        **given["norm"],
        "n_heads": sizes.n_heads,
        "rotary": rotary,
        "causal": sizes.causal,
    }
    inner = {
        key: partial(build, key, {"name": BASELINE[key]}, **given[key])
        for key in ("attention", "norm", "feedforward")
    }
    given["layer"] = {**given["norm"], "causal": sizes.causal, **inner}
    return build(room, {"name": name}, **given[room])


def example_input(room: str, sizes: Sizes, t: int | None = None) -> Tensor:
    """What a part of the room is called with."""
    t = t or sizes.t
    if room == "rotary":
        return torch.randn(1, sizes.n_heads, t, sizes.d_model // sizes.n_heads, requires_grad=True)
    return torch.randn(1, t, sizes.d_model, requires_grad=True)


def profile_pair(part: nn.Module, usual: nn.Module, x: Tensor) -> tuple[Cost, Cost]:
    """The costs of both, their times measured in turns."""
    both, seconds = (part, usual), []
    for calls in (
        [partial(forward, each.eval(), x) for each in both],
        [partial(train, each, x) for each in both],
    ):
        for call in calls:
            call()
        spent = interleaved(*(lambda _, call=call: call() for call in calls), ROUNDS)
        seconds.append([min(times) for times in spent])
    one, other = (
        Cost(
            sum(p.numel() for p in each.parameters()),
            flops(each.eval(), x),
            *times,
            memory(each, x),
        )
        for each, times in zip(both, zip(*seconds, strict=True), strict=True)
    )
    return one, other


def growth(part: nn.Module, of_length: Callable[[int], Tensor]) -> str:
    """The exponent p of forward time ~ t^p, up to the longest sequence that the memory allows."""
    shortest, second, *longer = LENGTHS
    part.eval()
    taken = peak(partial(forward, part, of_length(second)))
    longest = max([second, *(t for t in longer if taken * (t / second) ** 2 <= MEMORY)])
    short, long = of_length(shortest), of_length(longest)
    forward(part, short), forward(part, long)
    spent = interleaved(lambda _: forward(part, short), lambda _: forward(part, long), 3)
    exponent = math.log(min(spent[1]) / min(spent[0])) / math.log(longest / shortest)
    return f"{exponent:.2f}" + f" (to {longest})" * (longest < LENGTHS[-1])


@torch.no_grad()
def forward(part: nn.Module, x: Tensor) -> None:
    part(x)


def train(part: nn.Module, x: Tensor) -> None:
    part.train()(x).sum().backward()


def memory(part: nn.Module, x: Tensor) -> int:
    """The most bytes that a pass forward and backward allocates at once, the gradients that it leaves among them."""
    part.zero_grad()
    x.grad = None
    return peak(partial(train, part, x))


@torch.no_grad()
def flops(part: nn.Module, x: Tensor) -> float:
    """For a position, those that gates and jumps leave."""
    set_observed(part, True)
    # fused attention is not counted on every device, its plain form is
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        part(x)
    set_observed(part, False)
    counts = {
        path: sum(kinds.values()) / x.shape[-2] for path, kinds in counter.get_flop_counts().items()
    }
    return gated_flops(part, type(part).__name__, counts)


def gated_flops(part: nn.Module, path: str, counts: Mapping[str, float]) -> float:
    """What is left of those counted in a module: as its `flops` tell, or the share `compute` of all but its gate's."""
    shown = getattr(part, "metrics", {})
    if "flops" in shown:
        return shown["flops"].item()
    inner = {
        name: gated_flops(child, f"{path}.{name}", counts) for name, child in part.named_children()
    }
    total = counts.get(path, 0.0) + sum(
        each - counts.get(f"{path}.{name}", 0.0) for name, each in inner.items()
    )
    if "compute" in shown:
        return inner["gate"] + shown["compute"].item() * (total - inner["gate"])
    return total


def peak(call: Callable[[], object]) -> int:
    """The most bytes that are allocated at once during a call, on top of those that are before it."""
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # else the profiler tells stderr each time that it starts
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def interleaved(one: Callable[[int], object], other: Callable[[int], object], rounds: int) -> Spent:
    """Seconds of each of two functions, called in turn, who goes first by turns too."""
    spent: Spent = ([], [])
    for i in range(rounds):
        for k, function in ((0, one), (1, other)) if i % 2 else ((1, other), (0, one)):
            started = time.perf_counter()
            function(i)
            spent[k].append(time.perf_counter() - started)
    return spent
