"""Steps of optimizers for many tensors in one launch, over a table of their addresses.

Weights, step counts and the flag `found_inf` are read on the device; where the flag is not 0,
nothing is written. A missing gradient is None, and its parameter does not change. Arithmetic is in
fp32.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from famx.kernels.chunked import (
    Column,
    Tensors,
    chunk_of_program,
    launch_chunks,
    on_device,
    rate,
    read,
    write,
)

ROWS = 1024  # tensors of a program that reads one number of each
EPS = tl.constexpr(torch.finfo(torch.float32).eps)


def non_finite(gradients: Column, params: Tensors) -> Float[Tensor, ""]:
    """Returns 1 if an element of a gradient is not finite, else 0.

    Args:
        params: the parameters of the gradients, which define the chunks.
    """
    flag = torch.zeros((), device=params[0].device)
    launch_chunks(_non_finite_kernel, params, [gradients], (flag,))
    return flag


def average(
    averages: Tensors,
    gradients: Column,
    weights: float | Float[Tensor, " tensors"],
    found_inf: Float[Tensor, ""],
) -> None:
    """m <- m + w·(g - m), with one weight for all tensors or one for each."""
    is_vector = isinstance(weights, Tensor)
    weight = weights if is_vector else float(weights)
    launch_chunks(
        _step_kernel,
        averages,
        [averages, gradients, averages],
        (weight, found_inf, 0.0, 0.0, found_inf, len(averages)),
        averages=True,
        weight_is_vector=is_vector,
        weighs_by_momentum=False,
        debiases=False,
        descends=False,
        lr_on_device=False,
    )


def descend(
    params: Tensors,
    directions: Column,
    lr: float | Tensor,
    weight_decay: float,
    found_inf: Float[Tensor, ""],
) -> None:
    """θ <- θ - lr·(direction + weight_decay·θ)."""
    lr, lr_on_device = rate(lr, found_inf.device)
    launch_chunks(
        _step_kernel,
        params,
        [params, directions, params],
        (0.0, found_inf, lr, float(weight_decay), found_inf, len(params)),
        averages=False,
        weight_is_vector=False,
        weighs_by_momentum=False,
        debiases=False,
        descends=True,
        lr_on_device=lr_on_device,
    )
    torch.autograd.graph.increment_version(params)


def average_and_descend(
    params: Tensors,
    gradients: Column,
    averages: Column,
    numbers: tuple[Tensor, Tensor],
    lr: float | Tensor,
    weight_decay: float,
    found_inf: Float[Tensor, ""],
    debias: bool = False,
) -> None:
    """m <- m + w·(g - m); θ <- θ - lr·(m + weight_decay·θ), with w = 1 - a for each tensor.

    Args:
        numbers: a and the product of all a of each tensor, as vectors.
        debias: whether w is divided by 1 - product.
    """
    lr, lr_on_device = rate(lr, found_inf.device)
    launch_chunks(
        _step_kernel,
        params,
        [params, gradients, averages],
        (*numbers, lr, float(weight_decay), found_inf, len(params)),
        averages=True,
        weight_is_vector=True,
        weighs_by_momentum=True,
        debiases=debias,
        descends=True,
        lr_on_device=lr_on_device,
    )
    torch.autograd.graph.increment_version(params)


def count_step(
    counters: tuple[Tensor, Tensor, Tensor],
    momentum: Float[Tensor, " tensors"],
    has_gradient: Float[Tensor, " tensors"] | None,
    found_inf: Float[Tensor, ""],
) -> None:
    """Counts a step: products of momentum, steps of each tensor, or one more skipped step.

    Args:
        counters: product of momentum and number of steps of each tensor; number of skipped steps.
        has_gradient: 0 for tensors whose step does not count; None if all do.
    """
    flags = momentum if has_gradient is None else has_gradient
    grid = (triton.cdiv(len(momentum), ROWS),)
    with on_device(momentum.device):
        _count_step_kernel[grid](
            *counters,
            momentum,
            flags,
            found_inf,
            len(momentum),
            is_partial=has_gradient is not None,
            block=ROWS,
            num_warps=4,
        )


@triton.jit
@no_type_check
def _are_finite(g, count, is_full: tl.constexpr, block: tl.constexpr):
    values = read(g, tl.arange(0, block), count, is_full)
    # false for NaN too
    return tl.sum((tl.abs(values) < float("inf")).to(tl.int32), 0) == block


@triton.jit
@no_type_check
def _non_finite_kernel(
    table,
    chunks,
    flag,
    dtype: tl.constexpr,
    block: tl.constexpr,
):
    i, start, count = chunk_of_program(chunks)
    address = tl.load(table + i)
    if address != 0:
        g = address.to(tl.pointer_type(dtype)) + start
        if (count == block) & (address % 16 == 0):
            are_finite = _are_finite(g, count, True, block)
        else:
            are_finite = _are_finite(g, count, False, block)
        # all programs write the same value
        if are_finite == 0:
            tl.store(flag, 1.0)


@triton.jit
@no_type_check
def _step_chunk(  # noqa: PLR0913
    p,
    g,
    m,
    count,
    w,
    lr,
    weight_decay,
    averages: tl.constexpr,
    descends: tl.constexpr,
    is_full: tl.constexpr,
    block: tl.constexpr,
):
    # everything is loaded before a store, which later loads would wait for
    lane = tl.arange(0, block)
    direction = read(g, lane, count, is_full)
    if descends:
        old = read(p, lane, count, is_full)
    if averages:
        old_average = read(m, lane, count, is_full)
        # without momentum exactly the gradient
        moved = old_average + w * (direction - old_average)
        direction = tl.where(w == 1.0, direction, moved)
        write(m, lane, direction, count, is_full)
    if descends:
        write(p, lane, old - lr * (direction + weight_decay * old), count, is_full)


@triton.jit(do_not_specialize=["weights", "products", "lr", "found_inf", "n_tensors"])
@no_type_check
def _step_kernel(  # noqa: PLR0913
    table,
    chunks,
    weights,
    products,
    lr,
    weight_decay,
    found_inf,
    n_tensors,
    averages: tl.constexpr,
    weight_is_vector: tl.constexpr,
    weighs_by_momentum: tl.constexpr,
    debiases: tl.constexpr,
    descends: tl.constexpr,
    lr_on_device: tl.constexpr,
    dtype: tl.constexpr,
    block: tl.constexpr,
):
    """Averages gradients, descends along them, or descends along their averages."""
    i, start, count = chunk_of_program(chunks)
    # all scalars are loaded before a branch, so that their latencies overlap
    p_address = tl.load(table + i)
    g_address = tl.load(table + n_tensors + i)
    m_address = tl.load(table + 2 * n_tensors + i)
    w = tl.load(weights + i) if weight_is_vector else weights
    if weighs_by_momentum:
        w = 1.0 - w
    if debiases:
        w = w / tl.maximum(1.0 - tl.load(products + i), EPS)
    learning_rate = tl.load(lr) if lr_on_device else lr
    if (tl.load(found_inf) == 0.0) & (g_address != 0):
        p = p_address.to(tl.pointer_type(dtype)) + start
        g = g_address.to(tl.pointer_type(dtype)) + start
        m = m_address.to(tl.pointer_type(dtype)) + start
        if (count == block) & ((p_address | g_address | m_address) % 16 == 0):
            _step_chunk(
                p, g, m, count, w, learning_rate, weight_decay, averages, descends, True, block
            )
        else:
            _step_chunk(
                p, g, m, count, w, learning_rate, weight_decay, averages, descends, False, block
            )


@triton.jit(do_not_specialize=["momentum", "has_gradient", "found_inf", "n_tensors"])
@no_type_check
def _count_step_kernel(  # noqa: PLR0913
    products,
    steps,
    skipped,
    momentum,
    has_gradient,
    found_inf,
    n_tensors,
    is_partial: tl.constexpr,
    block: tl.constexpr,
):
    i = tl.program_id(0) * block + tl.arange(0, block)
    mask = i < n_tensors
    if tl.load(found_inf) == 0.0:
        if is_partial:
            mask = mask & (tl.load(has_gradient + i, mask=mask, other=0.0) > 0.0)
        product = tl.load(products + i, mask=mask, other=0.0)
        product *= tl.load(momentum + i, mask=mask, other=0.0)
        step = tl.load(steps + i, mask=mask, other=0.0)
        tl.store(products + i, product, mask=mask)
        tl.store(steps + i, step + 1.0, mask=mask)
    else:
        if tl.program_id(0) == 0:
            tl.store(skipped, tl.load(skipped) + 1)
