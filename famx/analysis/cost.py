"""The cost of a part, measured interleaved with the baseline of its room.

The cost is parameters, FLOPs, time, memory, and the growth of time with length. torch counts all
matrix products of a pass, also those whose result a gate discards. So a module with gates reports,
while it is observed, the FLOPs that remain:

- `metrics["flops"]` (0-d): the expected FLOPs per position of the module, in place of the count;
- `metrics["compute"]` (0-d, 0 to 1): the share of its computation that is performed. The count is
  multiplied by it, except for the child module called `gate`, which always runs.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from famx.nn.hooks import Observed, set_observed
from famx.notation import UserError, suggest
from famx.registry import build, names

BASELINE = {
    "attention": "multihead",
    "rotary": "rope",
    "norm": "layernorm",
    "feedforward": "gelu",
    "layer": "prenorm",
}
LENGTHS = (256, 1024, 2048, 4096)  # time grows from the first to the last of them
MAX_MEMORY = 4e9  # bytes of a pass; sequences that need more are not measured
ROUNDS = 15
GROWTH_ROUNDS = 3

# elapsed seconds of each call of two functions
Timings = tuple[list[float], list[float]]


class Sizes(NamedTuple):
    """The sizes and the device that parts are measured with, on one sequence of `t` positions."""

    d_model: int
    n_heads: int
    t: int
    causal: bool = False
    device: str = "cpu"


class Cost(NamedTuple):
    """The cost of a part.

    Args:
        parameters: number of parameters.
        flops: expected FLOPs per position in evaluation, without elementwise operations.
        forward: seconds of a pass in evaluation.
        training: seconds of a pass forward and backward.
        memory: peak bytes that a pass forward and backward allocates, gradients included.
    """

    parameters: float
    flops: float
    forward: float
    training: float
    memory: float


class Profile(NamedTuple):
    """The cost of a part, that of its room's baseline, and the growth of its time with length."""

    cost: Cost
    baseline: Cost
    growth: str


def profile_room(room: str, sizes: Sizes) -> Iterator[tuple[str, Profile | UserError]]:
    """Yields the name and the profile of each part of a room, the baseline first.

    For a part that does not support the sizes, its error is yielded instead of a profile.

    Raises:
        UserError: the parts of the room are not measured, or its baseline does not support the
            sizes.
    """
    if room not in BASELINE:
        raise UserError(
            f"--measure: the parts of the room {room} are not measured{suggest(room, BASELINE)}"
        )
    # sizes that no part supports; parts themselves raise for others
    if min(sizes.d_model, sizes.n_heads) < 1 or sizes.t < 2:
        raise UserError(
            f"--measure: d_model, n_heads and t must be at least 1, 1 and 2, got {sizes[:3]}"
        )
    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: there is no CUDA device on this machine, use --device=cpu")
    # the baseline is profiled against itself
    baseline = build_alone(room, BASELINE[room], sizes)
    for name in [BASELINE[room], *(name for name in names(room) if name != BASELINE[room])]:
        try:
            part = build_alone(room, name, sizes)
        except UserError as error:
            yield name, error
            continue
        costs = profile_pair(part, baseline, example_input(room, sizes))
        yield name, Profile(*costs, growth(part, partial(example_input, room, sizes)))


def build_alone(room: str, name: str, sizes: Sizes) -> nn.Module:
    """Builds a part together with the baselines of the rooms that it needs."""
    # the context of each room
    torch.manual_seed(0)
    head_dim = sizes.d_model // sizes.n_heads
    rotary = build("rotary", {"name": BASELINE["rotary"]}, head_dim=head_dim)
    context: dict[str, dict[str, Any]] = {
        "rotary": {"head_dim": head_dim},
        "norm": {"d_model": sizes.d_model},
        "feedforward": {"d_model": sizes.d_model},
        "attention": {
            "d_model": sizes.d_model,
            "n_heads": sizes.n_heads,
            "rotary": rotary,
            "causal": sizes.causal,
        },
        "layer": {"d_model": sizes.d_model, "causal": sizes.causal},
    }
    # a layer receives factories
    for inner in ("attention", "norm", "feedforward"):
        factory = partial(build, inner, {"name": BASELINE[inner]}, **context[inner])
        context["layer"][inner] = factory
    return build(room, {"name": name}, **context[room]).to(sizes.device)


def example_input(room: str, sizes: Sizes, t: int | None = None) -> Tensor:
    """Returns a random input of `t` positions for a part of the room; None for `t` of `sizes`."""
    if t is None:
        t = sizes.t
    if room == "rotary":
        head_dim = sizes.d_model // sizes.n_heads
        heads = torch.randn(1, sizes.n_heads, t, head_dim, device=sizes.device)
        return heads.requires_grad_()
    return torch.randn(1, t, sizes.d_model, device=sizes.device, requires_grad=True)


def profile_pair(part: nn.Module, baseline: nn.Module, x: Tensor) -> tuple[Cost, Cost]:
    """Measures the costs of two modules; their passes are timed interleaved."""
    # times, interleaved
    forward_seconds = _fastest(
        partial(forward, part.eval(), x), partial(forward, baseline.eval(), x)
    )
    training_seconds = _fastest(partial(train, part, x), partial(train, baseline, x))
    # the other costs do not vary between calls
    costs = []
    for i, module in enumerate((part, baseline)):
        cost = Cost(
            parameters=sum(p.numel() for p in module.parameters()),
            flops=flops(module.eval(), x),
            forward=forward_seconds[i],
            training=training_seconds[i],
            memory=memory(module, x),
        )
        costs.append(cost)
    return costs[0], costs[1]


def growth(part: nn.Module, input_of_length: Callable[[int], Tensor]) -> str:
    """Returns the exponent p of forward time ~ t^p, up to the longest t that fits in memory."""
    part.eval()
    # memory grows at most with the square of the length
    shortest, second, *longer = LENGTHS
    second_input = input_of_length(second)
    measure = peak_on_cuda if second_input.is_cuda else peak
    needed = measure(partial(forward, part, second_input))
    affordable = [t for t in longer if needed * (t / second) ** 2 <= MAX_MEMORY]
    longest = max([second, *affordable])

    # timed after a first call of each, which may allocate
    short_input = input_of_length(shortest)
    long_input = input_of_length(longest)
    forward(part, short_input)
    forward(part, long_input)
    seconds, long_seconds = interleaved(
        _in_each_round(partial(forward, part, short_input)),
        _in_each_round(partial(forward, part, long_input)),
        GROWTH_ROUNDS,
    )
    exponent = math.log(min(long_seconds) / min(seconds)) / math.log(longest / shortest)
    limit = f" (to {longest})" if longest < LENGTHS[-1] else ""
    return f"{exponent:.2f}{limit}"


@torch.no_grad()
def forward(part: nn.Module, x: Tensor) -> None:
    """Runs a pass forward, without gradients."""
    part(x)
    _wait_for(x.device)


def train(part: nn.Module, x: Tensor) -> None:
    """Runs a pass forward and backward in training mode."""
    part.train()(x).sum().backward()
    _wait_for(x.device)


def _wait_for(device: torch.device) -> None:
    """Waits until the device has finished its work, of which the host's clock sees nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(part: nn.Module, x: Tensor) -> int:
    """Returns the peak bytes that a pass forward and backward allocates, gradients included."""
    part.zero_grad()
    x.grad = None
    if x.is_cuda:
        return peak_on_cuda(partial(train, part, x))
    return peak(partial(train, part, x))


@torch.enable_grad()
def flops(part: nn.Module, x: Tensor) -> float:
    """Returns the FLOPs per position of a pass, without those that gates and jumps skip.

    The pass has gradients, since without them some parts compute only what their gates leave, by
    an amount that depends on x.
    """
    set_observed(part, True)
    # plain attention, since fused attention is not counted on every device
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        part(x)
    set_observed(part, False)
    counts = {}
    for path, flops_by_operator in counter.get_flop_counts().items():
        counts[path] = sum(flops_by_operator.values()) / x.shape[-2]
    return gated_flops(part, type(part).__name__, counts)


def gated_flops(part: nn.Module, path: str, counts: Mapping[str, float]) -> float:
    """Returns the FLOPs that a module performs, by its metrics (see the top of this file).

    Args:
        path: the name of the module in `counts`.
        counts: FLOPs of each module by its path, those of skipped computation included.
    """
    metrics = part.metrics if isinstance(part, Observed) else {}
    if "flops" in metrics:
        return metrics["flops"].item()
    # the counts of the children are replaced by the FLOPs that they perform
    performed = {}
    change = 0.0
    for name, child in part.named_children():
        child_path = f"{path}.{name}"
        performed[name] = gated_flops(child, child_path, counts)
        change += performed[name] - counts.get(child_path, 0.0)
    total = counts.get(path, 0.0) + change
    if "compute" in metrics:
        gate = performed["gate"]
        return gate + metrics["compute"].item() * (total - gate)
    return total


def peak(call: Callable[[], object]) -> int:
    """Returns the peak bytes that a call allocates at once, in addition to those before it."""
    # otherwise the profiler would report each start on stderr
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    # events of memory are allocations and, with negative bytes, releases
    allocated = 0
    highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            highest = max(highest, allocated)
    return highest


def peak_on_cuda(call: Callable[[], object]) -> int:
    """Returns what `peak` returns, for a call that works on a CUDA device."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - allocated


def interleaved(
    first: Callable[[int], object], second: Callable[[int], object], rounds: int
) -> Timings:
    """Times two functions in turn, which also alternate in going first.

    Both are called with the number of the round.
    """
    timings: Timings = ([], [])
    calls = [(timings[0], first), (timings[1], second)]
    for i in range(rounds):
        for seconds, function in calls if i % 2 else reversed(calls):
            started = time.perf_counter()
            function(i)
            seconds.append(time.perf_counter() - started)
    return timings


def _fastest(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Returns the least seconds of two functions, timed interleaved after a first call of each."""
    first()
    second()
    timings = interleaved(_in_each_round(first), _in_each_round(second), ROUNDS)
    return min(timings[0]), min(timings[1])


def _in_each_round(function: Callable[[], object]) -> Callable[[int], object]:
    """Returns a function of the round that calls the same function in each."""
    return lambda _: function()
