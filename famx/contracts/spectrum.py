"""Contracts of spectra: shares of bands that tell slow from fast, and white noise that is white."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from famx.contracts import Contract, build_for_test, require
from famx.nn.hooks import set_observed
from famx.notation import TensorInfo
from famx.spectrum.base import Spectrum

# every layout, several numbers of bands, and 1, 2 or 4 dimensions
TENSORS = [
    TensorInfo((40, 300), "other", 0.9, 8, "equal"),
    TensorInfo((32, 16, 3, 3), "conv", 0.9, 6, "log"),
    TensorInfo((1024,), "norm", 0.9, 4, "equal"),
    TensorInfo((64, 64), "attention", 0.92, 12, "split"),
]
# more than the window of 32 steps of a temporal spectrum, which measures every 8 steps
CALLS = 48


def missing_bands_are_zero(part: type[Spectrum]) -> None:
    """Shares are not negative, and zero past the number of bands of a tensor."""
    shares = _measurements(_build(part), _noise())[-1]
    for row, info in zip(shares, TENSORS, strict=True):
        require((row >= 0).all(), f"a share of {_name(info)} is negative: {row.min():.3g}")
        require(
            not row[info.n_bands :].any(),
            f"bands past n_bands={info.n_bands} have power: {row.tolist()}",
        )


def sums_to_one(part: type[Spectrum]) -> None:
    """The shares of each tensor sum to 1."""
    for shares in _measurements(_build(part), _noise()):
        for total, info in zip(shares.sum(1).tolist(), TENSORS, strict=True):
            require(abs(total - 1) < 1e-4, f"the shares of {_name(info)} sum to {total}")


def flat_on_white(part: type[Spectrum]) -> None:
    """White noise has equal bands in units of white noise."""
    spectrum = _build(part)
    # the mean of many measurements, since a band of a single one is within 25 % only by chance
    measurements = torch.stack(_measurements(spectrum, _noise(), calls=400))
    relative = spectrum.relative(measurements.mean(0))
    for row, info in zip(relative, TENSORS, strict=True):
        error = (row[: info.n_bands] - 1).abs().max().item()
        require(
            error < 0.25,
            f"white noise is not white: a band of {_name(info)} is {error:.0%} off its share, "
            "not less than 25%",
        )


def separates_slow_and_fast(part: type[Spectrum]) -> None:
    """Slow signals are in the lower half of the bands, fast ones in the upper half."""

    # slow or fast both in time (t) and along the entries (i), since spectra measure either
    def slow_signal(t: int, i: Tensor, n: int) -> Tensor:
        return torch.cos(2 * torch.pi * (i / n + t / 1000))

    def fast_signal(t: int, i: Tensor, n: int) -> Tensor:
        return (-1.0) ** (t + i)

    slow = _measurements(_build(part), _noisy(slow_signal))[-1]
    fast = _measurements(_build(part), _noisy(fast_signal))[-1]
    # the power in each half of the bands
    for low, high, info in zip(slow, fast, TENSORS, strict=True):
        half = info.n_bands // 2
        lower = low[:half].sum()
        upper = high[half:].sum()
        for signal, side, share in (("slow", "lower", lower), ("fast", "upper", upper)):
            require(
                share > 0.8,
                f"a {signal} signal gives the {side} half of the bands of {_name(info)} "
                f"{share:.2f} of its power, not more than 0.8",
            )


def accepts_zeros_and_extremes(part: type[Spectrum]) -> None:
    """Zero, tiny and huge gradients have finite shares."""
    # squares below the smallest and above the largest float32; zeros have no shares
    for scale in (0.0, 1e-30, 1e30):
        _measurements(_build(part), _noise(scale=scale))


def is_deterministic(part: type[Spectrum]) -> None:
    """Two spectra of the same gradients agree."""
    first = _measurements(_build(part), _noise())[-1]
    second = _measurements(_build(part), _noise())[-1]
    require(torch.equal(first, second), "two measurements of the same gradients differ")


def no_side_effects(part: type[Spectrum]) -> None:
    """Gradients and the global random generator are not changed."""
    spectrum = _build(part)
    source = _noise()
    random_state = torch.get_rng_state()
    # until after a temporal spectrum has measured
    for _ in range(40):
        gradients = next(source)
        copies = [gradient.clone() for gradient in gradients]
        _measure(spectrum, gradients)
        require(all(map(torch.equal, copies, gradients)), "changes the gradients it measures")
    require(torch.equal(random_state, torch.get_rng_state()), "draws from the global generator")


def state_round_trip(part: type[Spectrum]) -> None:
    """A spectrum that loads the state of another continues like it."""
    source = _noise()
    original = _build(part)
    restored = _build(part)
    _measurements(original, source)
    restored.load_state_dict(original.state_dict())
    # equal shares and, at equal calls, new measurements
    for _ in range(20):
        gradients = next(source)
        same = torch.equal(_measure(original, gradients), _measure(restored, gradients))
        require(same, "continues differently from its state")
        require(original.fresh == restored.fresh, "measures at other calls from its state")


def buffers_not_mutated(part: type[Spectrum]) -> None:
    """A call replaces buffers and never writes into them, so that they can be restored."""
    spectrum = _build(part)
    source = _noise()
    for _ in range(CALLS):
        # the tensors themselves, which after the call may no longer be the spectrum's buffers
        buffers = [(name, buffer, buffer.clone()) for name, buffer in spectrum.named_buffers()]
        _measure(spectrum, next(source))
        for name, buffer, copy in buffers:
            require(
                torch.equal(buffer, copy),
                f"writes into its buffer {name}, which then cannot be restored",
            )


def observing_changes_nothing(part: type[Spectrum]) -> None:
    """The shares are the same while metrics are collected."""
    spectrum = _build(part)
    observed = _build(part)
    set_observed(observed, True)
    source = _noise()
    for _ in range(CALLS):
        gradients = next(source)
        shares = _measure(spectrum, gradients)
        require(
            torch.equal(shares, _measure(observed, gradients)), "measures differently when observed"
        )


def meta(part: type[Spectrum]) -> None:
    """All computation is on the device of the gradients."""
    # meta tensors have no values, so an operation on the host raises an error
    spectrum = _build(part).to("meta")
    gradients = [torch.empty(info.shape, device="meta") for info in TENSORS]
    for _ in range(CALLS):
        shares = _measure(spectrum, gradients)
    require(shares.is_meta, "computes on another device than that of the gradients")


def _build(part: type[Spectrum]) -> Spectrum:
    return build_for_test(part, tensors=TENSORS)


def _name(info: TensorInfo) -> str:
    return f"a tensor {info.shape} of kind {info.kind}"


def _measure(spectrum: Spectrum, gradients: list[Tensor]) -> Tensor:
    """Returns the shares of one call, after checking their type, shape and finiteness."""
    # type and shape
    shares = spectrum(gradients)
    expected = (len(TENSORS), max(info.n_bands for info in TENSORS))
    require(
        isinstance(shares, Tensor),
        f"gives a {type(shares).__name__}, not a tensor of shape {expected}",
    )
    require(
        shares.shape == expected, f"gives a tensor of shape {tuple(shares.shape)}, not {expected}"
    )
    # meta tensors have no values
    if not shares.is_meta:
        largest = max(gradient.abs().max() for gradient in gradients)
        require(
            shares.isfinite().all(),
            f"gradients up to {largest:.2g} give shares that are not finite",
        )
    return shares


def _measurements(
    spectrum: Spectrum, source: Iterator[list[Tensor]], calls: int = CALLS
) -> list[Tensor]:
    """Returns the shares of those calls that measured."""
    measurements = []
    for _ in range(calls):
        shares = _measure(spectrum, next(source))
        if spectrum.fresh:
            measurements.append(shares)
    require(measurements, f"has measured nothing after {calls} calls")
    return measurements


def _noise(scale: float = 1.0) -> Iterator[list[Tensor]]:
    """Yields gradients of white noise."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield [scale * torch.randn(info.shape, generator=generator) for info in TENSORS]


def _noisy(signal: Callable[[int, Tensor, int], Tensor]) -> Iterator[list[Tensor]]:
    """Yields gradients of entries signal(t, i, number of entries) under a little noise."""
    for t, gradients in enumerate(_noise(scale=0.05)):
        noisy = []
        for noise in gradients:
            n = noise.numel()
            noisy.append(noise + signal(t, torch.arange(n), n).view(noise.shape))
        yield noisy


CONTRACT: tuple[Contract, ...] = (
    missing_bands_are_zero,
    sums_to_one,
    flat_on_white,
    separates_slow_and_fast,
    accepts_zeros_and_extremes,
    is_deterministic,
    no_side_effects,
    state_round_trip,
    buffers_not_mutated,
    observing_changes_nothing,
    meta,
)
ESSENTIAL: tuple[Contract, ...] = (
    is_deterministic,
    no_side_effects,
    state_round_trip,
    buffers_not_mutated,
)
