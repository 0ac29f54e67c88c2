"""Contracts of attention blocks; layers keep most of them too."""

import copy

import torch
from torch import Tensor, nn

from famx.attention.base import Block
from famx.contracts import (
    Contract,
    ContractError,
    build_for_test,
    require,
    require_finite,
    without_shape_hook,
)
from famx.contracts._blocks import (
    LONG,
    B,
    BlockBuilder,
    BlockContract,
    D,
    H,
    S,
    T,
    build_block,
    is_close,
    relative_error,
    require_all_finite,
    require_equal_decoding,
    require_no_leak,
    with_change_at,
)
from famx.contracts._cross_attention import (
    attends_to_memory,
    causal_with_memory,
    memory_gets_a_gradient,
    memory_mask_obeyed,
    selected_rows_continue,
)
from famx.contracts._gradients import (
    every_gradient,
    every_gradient_in_a_stack,
    every_gradient_of_a_decoder,
)
from famx.contracts._torch_layers import works_in_torch_decoders, works_in_torch_layers
from famx.nn.hooks import Observed, set_observed


def shape(part: BlockBuilder) -> None:
    """The output has the shape and dtype of `x`."""
    block = build_block(part)
    x = torch.randn(B, T, D)
    y = block(x)
    require(y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}")
    require(y.dtype == x.dtype, f"turns {x.dtype} into {y.dtype}")
    require_all_finite(y)


def one_position(part: BlockBuilder) -> None:
    """A sequence of one position has an output."""
    for causal in (False, True):
        y = build_block(part, causal)(torch.randn(B, 1, D))
        require(y.shape == (B, 1, D), f"turns {(B, 1, D)} into {tuple(y.shape)}")
        require_all_finite(y)


def mask_obeyed(part: BlockBuilder) -> None:
    """No visible output depends on a position that the mask hides."""
    block = build_block(part)
    x = torch.randn(B, T, D)
    memory = torch.randn(B, S, D)

    # one hidden position
    hidden = torch.ones(B, 1, 1, T, dtype=torch.bool)
    hidden[..., 2] = False
    visible = [t for t in range(T) if t != 2]
    changed = block(with_change_at(x, 2), mask=hidden)
    require(
        is_close(block(x, mask=hidden)[:, visible], changed[:, visible]),
        "other outputs change with x at t=2, which the mask hides",
    )

    # one hidden position of a memory
    y = block(x, memory, hidden[..., :S])
    changed = block(x, with_change_at(memory, 2), hidden[..., :S])
    require(is_close(y, changed), "the output changes with the memory at s=2, which the mask hides")

    # two packed sequences, of 3 and T - 3 positions
    first = torch.ones(3, 3, dtype=torch.bool)
    second = torch.ones(T - 3, T - 3, dtype=torch.bool)
    packed = torch.block_diag(first, second).bool()[None, None]
    y = block(x, mask=packed)
    changed = block(with_change_at(x, 4), mask=packed)
    require(
        is_close(y[:, :3], changed[:, :3]),
        "of two packed sequences, the first changes with x at t=4 of the second",
    )

    # a block that mixes no positions would pass until here
    require(not is_close(block(x), block(x, mask=hidden)), "a mask changes nothing")


def fully_masked(part: BlockBuilder) -> None:
    """A sample whose mask hides everything has a finite output and finite gradients."""
    for causal in (False, True):
        block = build_block(part, causal)
        mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
        mask[0] = False
        # the softmax over no key is 0/0
        y = block(torch.randn(B, T, D), mask=mask)
        require(y.isfinite().all(), "a sample whose mask hides everything is not finite")
        y.square().mean().backward()
        # a gradient may be absent: `every_gradient` is about that
        for name, p in block.named_parameters():
            require(
                p.grad is None or p.grad.isfinite().all(),
                f"a sample whose mask hides everything makes the gradient of {name} nan",
            )


def causal(part: BlockBuilder) -> None:
    """No output depends on a later position, and decoding by chunks equals one full pass."""
    block = build_block(part, causal=True)
    x = torch.randn(B, T, D)
    padding = torch.ones(B, 1, 1, T, dtype=torch.bool)
    padding[1, ..., :2] = False
    # many short calls, most of whose time would be checks of shapes
    with without_shape_hook():
        # the future of short sequences; gates act differently in training
        for training in (False, True):
            for mask in (None, padding):
                require_no_leak(block.train(training), x, mask, range(1, T))
        # and of a long one, from a few positions in different blocks
        block.eval()
        require_no_leak(block, torch.randn(1, LONG, D), None, (2, LONG // 2, LONG - 1))
        # decoding by single positions, and by chunks that do not divide the length
        for chunk in (1, 3):
            require_equal_decoding(block, x, None, None, chunk)
            require_equal_decoding(block, x, None, padding, chunk)
            require_equal_decoding(block, x, torch.randn(B, S, D), None, chunk)


def padding_independent(part: BlockBuilder) -> None:
    """Padding does not change a sample."""
    for causal in (False, True):
        # within a block, by more than a block, and at the end of the last block
        for padded_len, real_len in ((T, S), (LONG, S), (LONG, LONG - 2)):
            block = build_block(part, causal)
            x = torch.randn(B, padded_len, D)
            lengths = torch.tensor([padded_len, real_len])
            mask = torch.arange(padded_len)[None, None, None] < lengths[:, None, None, None]
            # the second sample is the padded one
            padded = block(x, mask=mask)[1:, :real_len]
            require(
                is_close(padded, block(x[1:, :real_len])),
                f"a sample of {real_len} positions changes when it is padded to {padded_len}",
            )


def batch_independent(part: BlockBuilder) -> None:
    """A sample does not depend on the other samples of its batch."""
    for causal in (False, True):
        for length in (T, LONG):
            block = build_block(part, causal)
            x = torch.randn(4, length, D)
            batched = block(x)
            # equal to the last bit it need not be: kernels differ by batch size
            where = f" where it has {length} positions" if length > T else ""
            for i in range(4):
                require(
                    is_close(batched[i : i + 1], block(x[i : i + 1])),
                    f"sample {i} depends on its batch-mates{where}",
                )


def deterministic(part: BlockBuilder) -> None:
    """Two calls in evaluation give the same output for the same input."""
    block = build_block(part)
    x = torch.randn(B, T, D)
    first, second = require_finite(block(x), block(x))
    require(torch.equal(first, second), "in evaluation, two calls on the same x differ")


def observing_changes_nothing(part: BlockBuilder) -> None:
    """Metrics leave the output as it is; they are finite and without a graph."""
    block = build_block(part)
    x = torch.randn(B, T, D)
    y = block(x)
    set_observed(block, True)
    y, observed = require_finite(y, block(x))
    require(torch.equal(y, observed), "the output changes while it is observed")
    # the metrics of the block and of the modules that it consists of
    for module in block.modules():
        if not isinstance(module, Observed):
            continue
        for name, value in module.metrics.items():
            require(not value.requires_grad, f"metric {name} keeps the graph alive")
            require(value.isfinite().all(), f"metric {name} is {value}")
            # the images of all layers are drawn below each other, over one time axis
            is_image = value.ndim == 2 and value.shape[1] == T
            require(
                is_image or not name.startswith("over_time/"),
                f"metric {name} has shape {tuple(value.shape)}, not rows of {T} positions",
            )


def copy_is_equal(part: type[Block]) -> None:
    """A copy made after a training call gives the same output."""
    block = build_block(part)
    x = torch.randn(B, T, D)
    # what a training call stores, such as a graph, must not prevent the copy
    block.train()(x)
    copied = copy.deepcopy(block)
    require(
        is_close(copied.eval()(x), block.eval()(x)),
        "a copy of it, made after a training call, gives another output",
    )


def half_precision(part: BlockBuilder) -> None:
    """The output in bfloat16, by autocast or of the module, is off by a tenth at most."""
    # without noise gates decide the same everywhere, so that rounding flips no decision
    block = build_block(part, noise=0.0)
    x = torch.randn(B, T, D)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    _require_within_a_tenth(y, exact, "under autocast to bfloat16")
    y = block.bfloat16()(x.bfloat16())
    require(y.dtype == torch.bfloat16, f"turns torch.bfloat16 into {y.dtype}")
    _require_within_a_tenth(y, exact, "in bfloat16")


def _require_within_a_tenth(y: Tensor, exact: Tensor, where: str) -> None:
    error = relative_error(y.float(), exact)
    require(
        error <= 0.1,
        f"{where} the output is off by {error:.0%} of its largest entry, more than a tenth",
    )


def compiles(part: BlockBuilder) -> None:
    """`torch.compile` traces the whole block, and gives the same output."""
    block = build_block(part, noise=0.0)
    x = torch.randn(B, T, D)
    mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
    # blocks share the code of their base, and torch recompiles it a limited number of times
    torch.compiler.reset()
    with without_shape_hook():
        expected = block(x, mask=mask)
        # this backend traces the forward and backward pass, and generates no code
        y = torch.compile(block, backend="aot_eager", fullgraph=True)(x, mask=mask)
        y.sum().backward()
        require(is_close(y, expected), "compiled, it gives another output")


def large_inputs(part: BlockBuilder) -> None:
    """Large inputs have finite outputs and gradients."""
    block = build_block(part, noise=0.0)
    x = (1000 * torch.randn(B, T, D)).requires_grad_()
    y = block(x)
    require(y.isfinite().all(), "inputs times 1000 give an output that is not finite")
    y.mean().backward()
    require(
        x.grad is not None and x.grad.isfinite().all(),
        "inputs times 1000 give a gradient that is not finite",
    )


def bad_sizes(part: type[Block]) -> None:
    """Sizes that do not fit are refused by a message that names both."""
    try:
        build_for_test(part, d_model=15, n_heads=H, rotary=nn.Identity(), causal=False)
    except ValueError as error:
        require(
            "15" in str(error) and str(H) in str(error),
            f"refuses d_model=15 n_heads={H} without naming both: {error}",
        )
    else:
        raise ContractError(f"accepts d_model=15, which n_heads={H} does not divide")


# contracts that layers keep too, with the same checks
SHARED: tuple[BlockContract, ...] = (
    shape,
    one_position,
    attends_to_memory,
    memory_mask_obeyed,
    causal_with_memory,
    memory_gets_a_gradient,
    selected_rows_continue,
    mask_obeyed,
    fully_masked,
    causal,
    padding_independent,
    batch_independent,
    deterministic,
    observing_changes_nothing,
    every_gradient,
    every_gradient_in_a_stack,
    every_gradient_of_a_decoder,
    half_precision,
    compiles,
    large_inputs,
)
CONTRACT: tuple[Contract, ...] = (
    *SHARED,
    copy_is_equal,
    bad_sizes,
    works_in_torch_layers,
    works_in_torch_decoders,
)
ESSENTIAL: tuple[Contract, ...] = (
    shape,
    mask_obeyed,
    fully_masked,
    causal,
    padding_independent,
    batch_independent,
    deterministic,
    observing_changes_nothing,
    every_gradient,
)
