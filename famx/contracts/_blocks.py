"""Blocks and layers to test, and comparisons of their outputs."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from famx.contracts import build_for_test, require, require_finite
from famx.nn.state import DecodeState
from famx.registry import build

BlockBuilder = Callable[..., nn.Module]
"""The class of an attention block, or a function that builds a layer with a block's context."""
BlockContract = Callable[[BlockBuilder], None]

# sizes: batch, queries, keys of a memory, d_model, heads; all differ, so that an exchange of two
# dimensions is an error
B = 2
T = 7
S = 5
D = 24
H = 4
# positions: two full blocks of a part that computes in blocks of 64, and a part of a third
LONG = 131
# float32 sums in another order differ by less than this share of the largest entry
TOLERANCE = 1e-4


def build_rotary() -> nn.Module:
    return build("rotary", {"name": "rope"}, head_dim=D // H)


def build_block(part: BlockBuilder, causal: bool = False, noise: float = 0.3) -> nn.Module:
    """Builds a block in evaluation mode, with noise on its weights.

    Without noise, gates and policies start with the same decision everywhere.
    """
    block = build_for_test(part, d_model=D, n_heads=H, rotary=build_rotary(), causal=causal)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(noise * torch.randn_like(p))
    return block.eval()


def with_change_at(x: Tensor, t: int) -> Tensor:
    """Returns a copy of `x` with noise added at position t."""
    changed = x.clone()
    changed[:, t] += 3 * torch.randn(x.shape[-1])
    return changed


def relative_error(y: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, in units of the largest expected entry."""
    y, expected = require_finite(y, expected)
    # an expected output of zeros must not divide by zero
    return ((y - expected).abs().max() / (1e-3 + expected.abs().max())).item()


def is_close(y: Tensor, expected: Tensor) -> bool:
    """Returns whether outputs agree to within rounding."""
    return relative_error(y, expected) <= TOLERANCE


def require_all_finite(y: Tensor) -> None:
    """Raises `ContractError` where an output is not finite; says which unless all are."""
    infinite = (~y.isfinite()).nonzero().tolist()
    where = ""
    # a position is news only where others are finite
    if 0 < len(infinite) < y.numel():
        sample, t, *_ = infinite[0]
        where = f", that of sample {sample} at t={t}"
    require(not infinite, f"an output is not finite{where}")


def require_no_leak(
    block: nn.Module, x: Tensor, mask: Tensor | None, changes: Iterable[int]
) -> None:
    """Requires that a change of `x` at a position changes the output there, and none before."""
    y = _run_with_fixed_seed(block, x, mask)
    require_all_finite(y)
    mode = " in training" if block.training else ""
    # one changed position at a time
    for s in changes:
        changed = _run_with_fixed_seed(block, with_change_at(x, s), mask)
        for t in range(s):
            require(
                is_close(y[:, t], changed[:, t]),
                f"leaks the future{mode}: output at t={t} changes when x at t={s} does",
            )
        require(
            not is_close(y[:, s], changed[:, s]), f"output at t={s} does not depend on x at t={s}"
        )


def require_equal_decoding(
    block: nn.Module, x: Tensor, memory: Tensor | None, mask: Tensor | None, chunk: int
) -> None:
    """Requires that decoding `chunk` positions at a time gives the output of one full pass."""
    # the output chunk by chunk; a mask covers the cached positions too
    state = DecodeState()
    outputs = []
    for t in range(0, x.shape[1], chunk):
        mask_now = None if mask is None else mask[..., : t + chunk]
        outputs.append(block(x[:, t : t + chunk], memory, mask_now, state))
    decoded = torch.cat(outputs, 1)

    # position by position, so that the message names the first that differs
    expected = block(x, memory, mask)
    padded = "" if mask is None else ", padded"
    with_memory = "" if memory is None else ", with a memory"
    for t in range(x.shape[1]):
        error = relative_error(decoded[:, t], expected[:, t])
        require(
            error <= TOLERANCE,
            f"decoding {chunk} at a time with a state{padded}{with_memory} differs from the full "
            f"pass, first at t={t}, by {error:.2g} of the largest entry there",
        )


def _run_with_fixed_seed(block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the output under one fixed stream of random numbers."""
    # in training, dropout and policies draw; two outputs are comparable only for equal draws
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        return block(x, mask=mask)
