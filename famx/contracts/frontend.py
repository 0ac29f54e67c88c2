"""What every front end promises."""

import inspect

import torch
from torch import Tensor, nn

from famx.contracts import Contract, build_for_test, require, require_finite

D, VOCAB = 24, 11


def lengths_right(part: type) -> None:
    frontend = _frontend(part)
    sizes = [1, 2, 159, 160, 399, 400, 401, 560, 561, 1041, 4000]
    _, together = frontend(_signal(part, len(sizes), max(sizes)), torch.tensor(sizes))
    for size, length in zip(sizes, together.tolist(), strict=True):
        y, alone = frontend(_signal(part, 1, size), torch.tensor([size]))
        require(y.shape[-1] == D and y.ndim == 3, f"gives {tuple(y.shape)}, not (b t {D})")
        require(
            alone.item() == y.shape[1],
            f"says {alone.item()} frames of a signal of {size}, but gives {y.shape[1]}",
        )
        require(
            length == alone.item(),
            f"says {length} frames of a signal of {size} in a batch, {alone.item()} alone",
        )
        require(length >= 1, f"a signal of {size} gives no frame")
        require(y.isfinite().all(), f"a signal of {size} gives an output that is not finite")


def padding_changes_nothing(part: type) -> None:
    frontend = _frontend(part)
    sizes = torch.tensor([4000, 2345, 700, 1])
    signal = _signal(part, len(sizes), 4000)
    together, lengths = frontend(signal, sizes)
    for i, size in enumerate(sizes.tolist()):
        alone, _ = frontend(signal[i : i + 1, :size], sizes[i : i + 1])
        padded, plain = require_finite(together[i, : lengths[i]], alone[0])
        error = (padded - plain).abs().max().item()
        require(
            error < 1e-4,
            f"a signal of {size} changes by {error:.1e} when it is padded to 4000 with noise",
        )


def deterministic(part: type) -> None:
    frontend, signal = _frontend(part), _signal(part, 2, 1000)
    lengths = torch.tensor([1000, 800])
    outputs = require_finite(*(frontend(signal, lengths)[0] for _ in range(2)))
    require(torch.equal(*outputs), "in evaluation, two calls differ")


def finite(part: type) -> None:
    frontend, signal = _frontend(part), _signal(part, 2, 1000)
    for scale in (0, 1000) if signal.is_floating_point() else (0, 1):
        y, _ = frontend(scale * signal, torch.tensor([1000, 800]))
        require(y.isfinite().all(), f"a signal times {scale} gives an output that is not finite")


def half_precision(part: type) -> None:
    frontend, signal, lengths = _frontend(part), _signal(part, 2, 1000), torch.tensor([1000, 800])
    exact, _ = frontend(signal, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = frontend(signal, lengths)
    y, exact = require_finite(y.float(), exact)
    error = ((y - exact).norm() / exact.norm()).item()
    require(error < 0.05, f"under autocast to bfloat16 it is off by {error:.0%}, not less than 5%")


def every_gradient(part: type) -> None:
    frontend = _frontend(part).train()
    y, _ = frontend(_signal(part, 2, 1000), torch.tensor([1000, 800]))
    (y * torch.randn_like(y)).sum().backward()
    for name, p in frontend.named_parameters():
        require(p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient")


def _frontend(part: type) -> nn.Module:
    return build_for_test(part, d_model=D, vocab_size=VOCAB).eval()


def _signal(part: type, batch: int, size: int) -> Tensor:
    return (
        torch.randint(VOCAB, (batch, size)) if _reads_ids(part) else 0.1 * torch.randn(batch, size)
    )


def _reads_ids(part: type) -> bool:
    return "vocab_size" in inspect.signature(part).parameters


CONTRACT: tuple[Contract, ...] = (
    lengths_right,
    padding_changes_nothing,
    deterministic,
    finite,
    half_precision,
    every_gradient,
)
