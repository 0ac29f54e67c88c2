"""What every spectrum promises: shares of bands that tell slow from fast and call white noise white."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from famx.notation import TensorInfo

TENSORS = [
    TensorInfo((40, 300), "other", 0.9, 8, "equal"),
    TensorInfo((32, 16, 3, 3), "conv", 0.9, 6, "log"),
    TensorInfo((1024,), "norm", 0.9, 4, "equal"),
    TensorInfo((64, 64), "attention", 0.92, 12, "split"),
]
CALLS = 48


def gives_one_row_a_tensor_padded_with_zeros(part: type) -> None:
    shares = _run(part(tensors=TENSORS), _noise())[-1]
    wanted = (len(TENSORS), max(info.n_bands for info in TENSORS))
    assert tuple(shares.shape) == wanted, f"shares have shape {tuple(shares.shape)} in place of {wanted}"
    for row, info in zip(shares, TENSORS, strict=True):
        assert (row >= 0).all(), f"a share of {info} is negative: {row.min():.3g}"
        assert not row[info.n_bands :].any(), f"bands past n_bands={info.n_bands} hold power: {row.tolist()}"


def sums_to_one(part: type) -> None:
    for shares in _run(part(tensors=TENSORS), _noise()):
        for total, info in zip(shares.sum(1).tolist(), TENSORS, strict=True):
            assert abs(total - 1) < 1e-4, f"the shares of {info} sum to {total}"


def flat_on_white(part: type) -> None:
    measure = part(tensors=TENSORS)
    measured = torch.stack(_run(measure, _noise(), calls=400))
    relative = measure.relative(measured.mean(0))
    for row, info in zip(relative, TENSORS, strict=True):
        off = (row[: info.n_bands] - 1).abs().max().item()
        assert off < 0.25, f"white noise is not white: a band of {info} is off by {off:.0%} of its share"


def separates_slow_and_fast(part: type) -> None:
    slow = _run(part(tensors=TENSORS), _signal(lambda t, i, n: torch.cos(2 * torch.pi * (i / n + t / 1000))))[-1]
    fast = _run(part(tensors=TENSORS), _signal(lambda t, i, n: (-1.0) ** (t + i)))[-1]
    for low, high, info in zip(slow, fast, TENSORS, strict=True):
        half = info.n_bands // 2
        assert low[:half].sum() > 0.8, f"a slow signal leaves the lower half of {info} only {low[:half].sum():.2f}"
        assert high[half:].sum() > 0.8, f"a fast signal leaves the upper half of {info} only {high[half:].sum():.2f}"


def takes_zeros_and_tiny_values(part: type) -> None:
    for scale in (0.0, 1e-30, 1e30):
        for shares in _run(part(tensors=TENSORS), _noise(scale=scale)):
            assert shares.isfinite().all(), f"a gradient of size {scale} gives shares that are not finite"


def is_deterministic(part: type) -> None:
    first, second = (_run(part(tensors=TENSORS), _noise())[-1] for _ in range(2))
    assert torch.equal(first, second), "measures the same gradients differently the second time"


def leaves_gradients_and_the_global_generator_alone(part: type) -> None:
    measure, gradients = part(tensors=TENSORS), [next(source) for source in [_noise()] for _ in range(40)]
    before, kept = torch.get_rng_state(), [g.clone() for row in gradients for g in row]
    for row in gradients:
        measure(row)
    assert torch.equal(before, torch.get_rng_state()), "draws from the global generator"
    assert all(map(torch.equal, kept, [g for row in gradients for g in row])), "changes the gradients it measures"


def state_round_trip(part: type) -> None:
    source, measure, other = _noise(), part(tensors=TENSORS), part(tensors=TENSORS)
    _run(measure, source)
    other.load_state_dict(measure.state_dict())
    rest = [next(source) for _ in range(20)]
    for row in rest:
        assert torch.equal(measure(row), other(row)), "goes on differently with the state that it gave"
        assert measure.fresh == other.fresh, "measures at other calls with the state that it gave"


def replaces_its_state(part: type) -> None:
    _replaces(part(tensors=TENSORS), _noise())


def meta(part: type) -> None:
    measure = part(tensors=TENSORS).to("meta")
    for _ in range(CALLS):
        shares = measure([torch.empty(info.shape, device="meta") for info in TENSORS])
    assert shares.is_meta, "computes on another device than that of the gradients"


def _replaces(measure: nn.Module, source: Iterator[list[Tensor]]) -> None:
    for _ in range(CALLS):
        kept = [(name, buffer, buffer.clone()) for name, buffer in measure.named_buffers()]
        measure(next(source))
        for name, buffer, copy in kept:
            assert torch.equal(buffer, copy), f"writes into its buffer {name}, which nobody can then put back"


def _run(measure: nn.Module, source: Iterator[list[Tensor]], calls: int = CALLS) -> list[Tensor]:
    """What was measured in so many calls."""
    found = []
    for _ in range(calls):
        shares = measure(next(source))
        if measure.fresh:
            found.append(shares)
    assert found, f"has measured nothing after {calls} calls"
    return found


def _noise(scale: float = 1.0) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield [scale * torch.randn(info.shape, generator=generator) for info in TENSORS]


def _signal(value: Callable[[int, Tensor, int], Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of entries value(t, i, number of entries) under a little noise."""
    for t, noise in enumerate(_noise(scale=0.05)):
        yield [n + value(t, torch.arange(n.numel()), n.numel()).view(n.shape) for n in noise]
