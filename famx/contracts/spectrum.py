"""What every spectrum promises: shares of bands that tell slow from fast and call white noise white."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from famx.contracts import Contract, build_for_test, require
from famx.notation import TensorInfo

TENSORS = [
    TensorInfo((40, 300), "other", 0.9, 8, "equal"),
    TensorInfo((32, 16, 3, 3), "conv", 0.9, 6, "log"),
    TensorInfo((1024,), "norm", 0.9, 4, "equal"),
    TensorInfo((64, 64), "attention", 0.92, 12, "split"),
]
CALLS = 48


def gives_one_row_a_tensor_padded_with_zeros(part: type) -> None:
    shares = _run(build_for_test(part, tensors=TENSORS), _noise())[-1]
    for row, info in zip(shares, TENSORS, strict=True):
        require((row >= 0).all(), f"a share of {_name(info)} is negative: {row.min():.3g}")
        require(
            not row[info.n_bands :].any(),
            f"bands past n_bands={info.n_bands} hold power: {row.tolist()}",
        )


def sums_to_one(part: type) -> None:
    for shares in _run(build_for_test(part, tensors=TENSORS), _noise()):
        for total, info in zip(shares.sum(1).tolist(), TENSORS, strict=True):
            require(abs(total - 1) < 1e-4, f"the shares of {_name(info)} sum to {total}")


def flat_on_white(part: type) -> None:
    measure = build_for_test(part, tensors=TENSORS)
    measured = torch.stack(_run(measure, _noise(), calls=400))
    relative = measure.relative(measured.mean(0))
    for row, info in zip(relative, TENSORS, strict=True):
        off = (row[: info.n_bands] - 1).abs().max().item()
        require(
            off < 0.25,
            f"white noise is not white: a band of {_name(info)} is {off:.0%} off its share, not less than 25%",
        )


def separates_slow_and_fast(part: type) -> None:
    slow = _run(
        build_for_test(part, tensors=TENSORS),
        _signal(lambda t, i, n: torch.cos(2 * torch.pi * (i / n + t / 1000))),
    )[-1]
    fast = _run(build_for_test(part, tensors=TENSORS), _signal(lambda t, i, n: (-1.0) ** (t + i)))[
        -1
    ]
    for low, high, info in zip(slow, fast, TENSORS, strict=True):
        half = info.n_bands // 2
        for signal, side, share in (
            ("slow", "lower", low[:half].sum()),
            ("fast", "upper", high[half:].sum()),
        ):
            told = f"a {signal} signal gives the {side} half of the bands of {_name(info)} {share:.2f} of its power"
            require(share > 0.8, f"{told}, not more than 0.8")


def takes_zeros_and_tiny_values(part: type) -> None:
    for scale in (0.0, 1e-30, 1e30):
        _run(build_for_test(part, tensors=TENSORS), _noise(scale=scale))


def is_deterministic(part: type) -> None:
    first, second = (_run(build_for_test(part, tensors=TENSORS), _noise())[-1] for _ in range(2))
    require(torch.equal(first, second), "measures the same gradients differently the second time")


def leaves_gradients_and_the_global_generator_alone(part: type) -> None:
    measure, gradients = (
        build_for_test(part, tensors=TENSORS),
        [next(source) for source in [_noise()] for _ in range(40)],
    )
    before, kept = torch.get_rng_state(), [g.clone() for row in gradients for g in row]
    for row in gradients:
        _measure(measure, row)
    require(torch.equal(before, torch.get_rng_state()), "draws from the global generator")
    require(
        all(map(torch.equal, kept, [g for row in gradients for g in row])),
        "changes the gradients it measures",
    )


def state_round_trip(part: type) -> None:
    source, measure, other = (
        _noise(),
        build_for_test(part, tensors=TENSORS),
        build_for_test(part, tensors=TENSORS),
    )
    _run(measure, source)
    other.load_state_dict(measure.state_dict())
    rest = [next(source) for _ in range(20)]
    for row in rest:
        same = torch.equal(_measure(measure, row), _measure(other, row))
        require(same, "goes on differently with the state that it gave")
        require(measure.fresh == other.fresh, "measures at other calls with the state that it gave")


def replaces_its_state(part: type) -> None:
    _replaces(build_for_test(part, tensors=TENSORS), _noise())


def meta(part: type) -> None:
    measure = build_for_test(part, tensors=TENSORS).to("meta")
    for _ in range(CALLS):
        shares = _measure(measure, [torch.empty(info.shape, device="meta") for info in TENSORS])
    require(shares.is_meta, "computes on another device than that of the gradients")


def _name(info: TensorInfo) -> str:
    return f"a tensor {info.shape} of kind {info.kind}"


def _measure(measure: nn.Module, gradients: list[Tensor]) -> Tensor:
    """What is measured, if these are shares."""
    shares, wanted = measure(gradients), (len(TENSORS), max(info.n_bands for info in TENSORS))
    require(
        isinstance(shares, Tensor),
        f"gives a {type(shares).__name__}, not a tensor of shape {wanted}",
    )
    require(shares.shape == wanted, f"gives a tensor of shape {tuple(shares.shape)}, not {wanted}")
    require(
        shares.is_meta or shares.isfinite().all(),
        f"gradients up to {max(g.abs().max() for g in gradients):.2g} give shares that are not finite",
    )
    return shares


def _replaces(measure: nn.Module, source: Iterator[list[Tensor]]) -> None:
    for _ in range(CALLS):
        kept = [(name, buffer, buffer.clone()) for name, buffer in measure.named_buffers()]
        _measure(measure, next(source))
        for name, buffer, copy in kept:
            require(
                torch.equal(buffer, copy),
                f"writes into its buffer {name}, which nobody can then put back",
            )


def _run(measure: nn.Module, source: Iterator[list[Tensor]], calls: int = CALLS) -> list[Tensor]:
    """What was measured in so many calls."""
    found = []
    for _ in range(calls):
        shares = _measure(measure, next(source))
        if measure.fresh:
            found.append(shares)
    require(found, f"has measured nothing after {calls} calls")
    return found


def _noise(scale: float = 1.0) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield [scale * torch.randn(info.shape, generator=generator) for info in TENSORS]


def _signal(value: Callable[[int, Tensor, int], Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of entries value(t, i, number of entries) under a little noise."""
    for t, noise in enumerate(_noise(scale=0.05)):
        yield [n + value(t, torch.arange(n.numel()), n.numel()).view(n.shape) for n in noise]


CONTRACT: tuple[Contract, ...] = (
    gives_one_row_a_tensor_padded_with_zeros,
    sums_to_one,
    flat_on_white,
    separates_slow_and_fast,
    takes_zeros_and_tiny_values,
    is_deterministic,
    leaves_gradients_and_the_global_generator_alone,
    state_round_trip,
    replaces_its_state,
    meta,
)
