"""Contracts of frontends: right lengths, and frames that padding does not change."""

import functools

import torch
from torch import Tensor

from famx.contracts import Contract, require, require_finite
from famx.frontend.base import Frontend
from famx.notation import Modality
from famx.registry import select_context

D_MODEL = 24
VOCAB_SIZE = 11
# samples, tokens or rows: around 160 and 400, the hop and the window of speech, and their sum
SIZES = (1, 2, 159, 160, 399, 400, 401, 560, 561, 1041, 4000)


def lengths_right(part: type[Frontend]) -> None:
    """The lengths are those of the output, the same alone, in a batch and by `n_frames`."""
    # the lengths of all signals at once
    frontend = _build(part)
    batch = _signal(part, len(SIZES), max(SIZES))
    _, in_batch = frontend(batch, torch.tensor(SIZES))
    predicted = frontend.n_frames(torch.tensor(SIZES))
    # and of each by itself
    for i, size in enumerate(SIZES):
        y, lengths = frontend(_signal(part, 1, size), torch.tensor([size]))
        length = lengths.item()
        require(y.ndim == 3 and y.shape[-1] == D_MODEL, f"gives {tuple(y.shape)}, not (b t d)")
        require(
            length == y.shape[1],
            f"says {length} frames of a signal of {size}, but gives {y.shape[1]}",
        )
        require(
            in_batch[i] == length,
            f"says {in_batch[i]} frames of a signal of {size} in a batch, {length} alone",
        )
        require(
            predicted[i] == length,
            f"n_frames says {predicted[i]} frames of a signal of {size}, but it has {length}",
        )
        require(length >= 1, f"a signal of {size} gives no frame")
        require(y.isfinite().all(), f"a signal of {size} gives an output that is not finite")


def padding_changes_nothing(part: type[Frontend]) -> None:
    """The frames of a signal are the same alone and padded."""
    frontend = _build(part)
    sizes = torch.tensor([4000, 2345, 700, 1])
    signal = _signal(part, len(sizes), 4000)
    in_batch, lengths = frontend(signal, sizes)
    # what follows the end of a signal in its row is noise, not zeros
    for i, size in enumerate(sizes.tolist()):
        alone, _ = frontend(signal[i : i + 1, :size], sizes[i : i + 1])
        padded, expected = require_finite(in_batch[i, : lengths[i]], alone[0])
        error = (padded - expected).abs().max().item()
        require(
            error < 1e-4,
            f"a signal of {size} changes by {error:.1e} when it is padded to 4000 with noise",
        )


def deterministic(part: type[Frontend]) -> None:
    """Two calls in evaluation give the same frames."""
    frontend = _build(part)
    signal = _signal(part, 2, 1000)
    lengths = torch.tensor([1000, 800])
    first, _ = frontend(signal, lengths)
    second, _ = frontend(signal, lengths)
    require(torch.equal(*require_finite(first, second)), "in evaluation, two calls differ")


def finite(part: type[Frontend]) -> None:
    """Silent and loud signals have finite outputs."""
    frontend = _build(part)
    signal = _signal(part, 2, 1000)
    # token ids have no loudness: zeros, and the ids themselves
    for scale in (0, 1) if part.modality is Modality.TEXT else (0, 1000):
        y, _ = frontend(scale * signal, torch.tensor([1000, 800]))
        require(y.isfinite().all(), f"a signal times {scale} gives an output that is not finite")


def half_precision(part: type[Frontend]) -> None:
    """Autocast to bfloat16 changes the output by less than 5 %."""
    frontend = _build(part)
    signal = _signal(part, 2, 1000)
    lengths = torch.tensor([1000, 800])
    expected, _ = frontend(signal, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = frontend(signal, lengths)
    # bfloat16 has 8 significant bits: 0.4 % a number
    y, expected = require_finite(y.float(), expected)
    error = ((y - expected).norm() / expected.norm()).item()
    require(error < 0.05, f"under autocast to bfloat16 it is off by {error:.0%}, not less than 5%")


def every_gradient(part: type[Frontend]) -> None:
    """Every parameter that is trained gets a gradient."""
    frontend = _build(part).train()
    y, _ = frontend(_signal(part, 2, 1000), torch.tensor([1000, 800]))
    # random weights, so that gradients of different frames do not cancel
    (y * torch.randn_like(y)).sum().backward()
    for name, p in frontend.named_parameters():
        if not p.requires_grad:
            continue
        require(p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient")


def _build(part: type[Frontend]) -> Frontend:
    # hyperparameters that famx.check was called with come before those of the example
    options = part.example() if issubclass(part, Frontend) else {}
    init = vars(part).get("__init__")
    if isinstance(init, functools.partialmethod):
        options |= init.keywords
    context = select_context(part, {"d_model": D_MODEL, "vocab_size": VOCAB_SIZE})
    return part(**context, **options).eval()


def _signal(part: type[Frontend], batch: int, size: int) -> Tensor:
    """Returns random samples, tokens or rows of pixels, whichever the part reads."""
    if part.modality is Modality.TEXT:
        return torch.randint(VOCAB_SIZE, (batch, size))
    # noise of the loudness of speech, within [-1, 1]; of an image, in each of its pixels
    return 0.1 * torch.randn(batch, size, *_build(part).pixels)


CONTRACT: tuple[Contract, ...] = (
    lengths_right,
    padding_changes_nothing,
    deterministic,
    finite,
    half_precision,
    every_gradient,
)
ESSENTIAL: tuple[Contract, ...] = (
    lengths_right,
    padding_changes_nothing,
    deterministic,
    finite,
    every_gradient,
)
