"""The step of AdamW for many tensors in one launch, each with its own momentum."""

import math
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
    rate,
    read,
    write,
)


def adamw(  # noqa: PLR0913
    params: Tensors,
    gradients: Column,
    averages: tuple[Column, Column],
    numbers: tuple[Tensor, Tensor, Tensor],
    lr: float | Tensor,
    beta2: float,
    eps: float,
    weight_decay: float,
    found_inf: Float[Tensor, ""],
) -> None:
    """m <- m + (1-a)·(g - m); v <- v + (1-β₂)·(g² - v); θ <- θ - lr·(m̂/(√v̂ + eps) + decay·θ).

    Args:
        averages: m and v of the parameters.
        numbers: a, the product of all a, and the number of steps of each tensor, as vectors.
    """
    lr, on_device = rate(lr, found_inf.device)
    log_beta2 = math.log(beta2) if beta2 > 0 else -math.inf
    settings = (log_beta2, 1.0 - beta2, float(eps), float(weight_decay))
    arguments = (*numbers, lr, *settings, found_inf, len(params))
    columns = [params, gradients, *averages]
    launch_chunks(_adamw_kernel, params, columns, arguments, lr_on_device=on_device)
    torch.autograd.graph.increment_version(params)


@triton.jit
@no_type_check
def _one_minus_exp(x):
    """1 - exp(x) of a scalar x <= 0, without the cancellation near 0."""
    # the series of exp to the ninth power is exact to fp32 above -.5
    y = tl.maximum(x, -0.5)
    series = 1.0 + y / 8.0 * (1.0 + y / 9.0)
    series = 1.0 + y / 6.0 * (1.0 + y / 7.0 * series)
    series = 1.0 + y / 4.0 * (1.0 + y / 5.0 * series)
    series = 1.0 + y / 2.0 * (1.0 + y / 3.0 * series)
    return tl.where(x > -0.5, -y * series, 1.0 - tl.exp(x))


@triton.jit
@no_type_check
def _adamw_chunk(  # noqa: PLR0913
    p,
    g,
    m,
    v,
    count,
    weights,
    debiases,
    settings,
    is_full: tl.constexpr,
    block: tl.constexpr,
):
    """Steps along a chunk.

    Args:
        weights: of g in m, and of its square in v.
        debiases: sums of all weights in m and in v so far.
        settings: learning rate, eps and weight decay.
    """
    lr, eps, weight_decay = settings
    lane = tl.arange(0, block)
    old = read(p, lane, count, is_full)
    gradient = read(g, lane, count, is_full)
    average = read(m, lane, count, is_full)
    square = read(v, lane, count, is_full)
    average += weights[0] * (gradient - average)
    square += weights[1] * (gradient * gradient - square)
    # the precise root: the approximate one is 0 for subnormal squares
    direction = average / debiases[0] / (tl.sqrt_rn(square / debiases[1]) + eps)
    write(m, lane, average, count, is_full)
    write(v, lane, square, count, is_full)
    write(p, lane, old - lr * (direction + weight_decay * old), count, is_full)


@triton.jit(do_not_specialize=["momentum", "products", "steps", "lr", "found_inf", "n_tensors"])
@no_type_check
def _adamw_kernel(  # noqa: PLR0913
    table,
    chunks,
    momentum,
    products,
    steps,
    lr,
    log_beta2,
    new_square_weight,
    eps,
    weight_decay,
    found_inf,
    n_tensors,
    lr_on_device: tl.constexpr,
    dtype: tl.constexpr,
    block: tl.constexpr,
):
    i, start, count = chunk_of_program(chunks)
    # all scalars are loaded before a branch, so that their latencies overlap
    p_address = tl.load(table + i)
    g_address = tl.load(table + n_tensors + i)
    m_address = tl.load(table + 2 * n_tensors + i)
    v_address = tl.load(table + 3 * n_tensors + i)
    learning_rate = tl.load(lr) if lr_on_device else lr
    settings = (learning_rate, eps, weight_decay)
    weights = (1.0 - tl.load(momentum + i), new_square_weight)
    v_debias = _one_minus_exp(tl.load(steps + i) * log_beta2)
    debiases = (1.0 - tl.load(products + i), v_debias)
    if (tl.load(found_inf) == 0.0) & (g_address != 0):
        p = p_address.to(tl.pointer_type(dtype)) + start
        g = g_address.to(tl.pointer_type(dtype)) + start
        m = m_address.to(tl.pointer_type(dtype)) + start
        v = v_address.to(tl.pointer_type(dtype)) + start
        is_aligned = (p_address | g_address | m_address | v_address) % 16 == 0
        if (count == block) & is_aligned:
            _adamw_chunk(p, g, m, v, count, weights, debiases, settings, True, block)
        else:
            _adamw_chunk(p, g, m, v, count, weights, debiases, settings, False, block)
