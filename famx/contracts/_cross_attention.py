"""Contracts of blocks and layers that attend to a memory, as in a decoder."""

import torch

from famx.contracts import require
from famx.contracts._blocks import (
    LONG,
    B,
    BlockBuilder,
    D,
    S,
    T,
    build_block,
    is_close,
    require_all_finite,
    with_change_at,
)
from famx.nn.state import DecodeState


def attends_to_memory(part: BlockBuilder) -> None:
    """A memory of any length changes the output, all of it also where the block is causal."""
    for causal in (False, True):
        # without noise, gates begin open
        block = build_block(part, causal, noise=0.0)
        for queries, keys in ((T, S), (S, LONG), (T, 1)):
            x = torch.randn(B, queries, D)
            memory = torch.randn(B, keys, D)
            y = block(x, memory)
            require(
                y.shape == x.shape,
                f"{queries} positions that attend to a memory of {keys} become {tuple(y.shape)}",
            )
            require_all_finite(y)
            # each sample with the memory of the other one
            require(not is_close(y, block(x, memory.flip(0))), "another memory changes nothing")
        # the first query also sees the last position of a short memory
        x = torch.randn(B, T, D)
        memory = torch.randn(B, S, D)
        changed = block(x, with_change_at(memory, S - 1))
        require(
            not is_close(block(x, memory)[:, 0], changed[:, 0]),
            "the first output does not depend on the last position of the memory",
        )


def memory_mask_obeyed(part: BlockBuilder) -> None:
    """No output depends on positions of a memory that the mask hides, or on their number."""
    for causal in (False, True):
        block = build_block(part, causal)
        x = torch.randn(B, T, D)
        memory = torch.randn(B, S, D)

        # a memory that is padded, and the same one without padding
        padding = torch.ones(B, 1, 1, S, dtype=torch.bool)
        padding[1, ..., S - 2 :] = False
        padded = block(x, memory, padding)[1:]
        require(
            is_close(padded, block(x[1:], memory[1:, : S - 2])),
            f"a memory of {S - 2} positions acts differently when it is padded to {S}",
        )

    # one position that is hidden from the first query alone; in a layer that is not causal, a
    # convolution may take it from the other queries. With noise gates differ, without they are open
    pairs = torch.ones(1, 1, T, S, dtype=torch.bool)
    pairs[..., 0, 2] = False
    for noise in (0.3, 0.0):
        block = build_block(part, causal=True, noise=noise)
        y = block(x, memory, pairs)
        changed = block(x, with_change_at(memory, 2), pairs)
        require(
            is_close(y[:, 0], changed[:, 0]),
            "an output changes with a position of the memory that the mask hides from it alone",
        )
    require(not is_close(y[:, 1], changed[:, 1]), "a mask of one query hides from the others too")


def causal_with_memory(part: BlockBuilder) -> None:
    """With a memory too, no output of a causal block depends on a later position."""
    block = build_block(part, causal=True)
    x = torch.randn(B, T, D)
    memory = torch.randn(B, S, D)
    y = block(x, memory)
    for s in range(1, T):
        changed = block(with_change_at(x, s), memory)
        require(
            is_close(y[:, :s], changed[:, :s]),
            f"with a memory, an output before t={s} changes when x at t={s} does",
        )
        require(
            not is_close(y[:, s], changed[:, s]),
            f"with a memory, the output at t={s} does not depend on x there",
        )


def memory_gets_a_gradient(part: BlockBuilder) -> None:
    """In training, every position of `x` and of the memory gets a finite gradient."""
    for causal in (False, True):
        # without noise, gates begin open
        block = build_block(part, causal, noise=0.0).train()
        x = torch.randn(B, T, D, requires_grad=True)
        memory = torch.randn(B, S, D, requires_grad=True)
        block(x, memory).square().mean().backward()
        for name, tensor in (("x", x), ("the memory", memory)):
            gradient = tensor.grad
            require(gradient is not None, f"{name} gets no gradient")
            assert gradient is not None
            require(gradient.isfinite().all(), f"the gradient of {name} is not finite")
            require(gradient.any(-1).all(), f"a position of {name} gets no gradient")


def selected_rows_continue(part: BlockBuilder) -> None:
    """A decode state goes on with selected sequences, as a beam search selects them."""
    block = build_block(part, causal=True)
    rows = torch.tensor([1, 1, 0])
    x = torch.randn(len(rows), T, D)
    start = torch.randn(B, S, D)
    for memory in (None, torch.randn(B, S, D)):
        # selected after the first chunk, and from the beginning
        state = DecodeState()
        block(start, memory, state=state)
        state.select(rows)
        selected_memory = None if memory is None else memory[rows]
        decoded = block(x, selected_memory, state=state)
        expected_state = DecodeState()
        block(start[rows], selected_memory, state=expected_state)
        expected = block(x, selected_memory, state=expected_state)
        with_memory = "" if memory is None else ", with a memory"
        require(
            is_close(decoded, expected),
            f"decoding goes on differently after a selection of sequences{with_memory}",
        )
