"""The share of power in each band of a spectrum over time, of many tensors in one launch."""

from functools import lru_cache
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from famx.kernels.chunked import on_device
from famx.kernels.tensor_table import keep_if_captured

TILE = 2048  # bins times coordinates that a program computes at once
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def band_shares(
    ring: Float[Tensor, "window tensors coordinates"],
    member: Float[Tensor, "tensors bins bands"],
) -> Float[Tensor, "tensors bands"]:
    """Returns the mean over coordinates of their share of power in each band.

    Args:
        ring: the series of each coordinate, contiguous; one that is always zero does not count.
        member: 1 where a bin of the rfft belongs to a band, else 0; contiguous.
    """
    window, n_tensors, n_coordinates = ring.shape
    _, n_bins, n_bands = member.shape
    bins_block = triton.next_power_of_2(n_bins)
    waves = _waves(window, bins_block, ring.device)
    keep_if_captured(waves, ring.device)
    shares = torch.empty(n_tensors, n_bands, device=ring.device)
    if shares.numel():
        with on_device(ring.device):
            _band_shares_kernel[(n_tensors,)](
                ring,
                member,
                waves,
                shares,
                window,
                n_coordinates,
                n_bins,
                n_bands,
                bins_block=bins_block,
                coordinates_block=max(1, TILE // bins_block),
                bands_block=triton.next_power_of_2(n_bands),
                num_warps=4,
            )
    return shares


@lru_cache(maxsize=8)
def _waves(window: int, n_columns: int, device: torch.device) -> Float[Tensor, "2 window columns"]:
    """Returns the cosine and sine of each bin at each time, zero in columns that are no bins."""
    bins = torch.arange(n_columns, dtype=torch.float64)
    angles = 2 * torch.pi / window * torch.arange(window, dtype=torch.float64)[:, None] * bins
    waves = torch.stack([angles.cos(), angles.sin()])
    waves[..., window // 2 + 1 :] = 0.0
    return waves.to(device, torch.float32)


@triton.jit
@no_type_check
def _band_shares_kernel(  # noqa: PLR0913
    ring,
    member,
    waves,
    shares,
    window,
    n_coordinates,
    n_bins,
    n_bands,
    bins_block: tl.constexpr,
    coordinates_block: tl.constexpr,
    bands_block: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    row_size = tl.num_programs(0) * n_coordinates
    bins = tl.arange(0, bins_block)
    sums = tl.zeros((bins_block,), tl.float32)
    varies = tl.zeros((coordinates_block,), tl.int32)
    for first in range(0, n_coordinates, coordinates_block):
        k = first + tl.arange(0, coordinates_block)
        mask = k < n_coordinates
        series = ring + i * n_coordinates + k
        # scaled first, since squares of small gradients underflow in fp32
        largest = tl.zeros((coordinates_block,), tl.float32)
        for t in range(0, window):
            values = tl.load(series + t * row_size, mask=mask, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(values))
        # the Fourier transform
        real = tl.zeros((bins_block, coordinates_block), tl.float32)
        imaginary = tl.zeros((bins_block, coordinates_block), tl.float32)
        for t in range(0, window):
            values = tl.load(series + t * row_size, mask=mask, other=0.0).to(tl.float32)
            values = tl.div_rn(values, tl.maximum(largest, TINY))
            cosine = tl.load(waves + t * bins_block + bins)
            sine = tl.load(waves + (window + t) * bins_block + bins)
            real += cosine[:, None] * values[None, :]
            imaginary += sine[:, None] * values[None, :]
        # power of each coordinate in each bin, as a share of its total power
        power = real * real + imaginary * imaginary
        total = tl.sum(power, 0)
        total = tl.where(total < 1.0, 1.0, total)
        sums += tl.sum(power / total[None, :], 1)
        varies += (largest > 0.0).to(tl.int32)
    # mean over the coordinates that are not always zero
    mean = sums / tl.maximum(tl.sum(varies, 0), 1).to(tl.float32)
    bands = tl.arange(0, bands_block)
    mask = (bins[:, None] < n_bins) & (bands[None, :] < n_bands)
    offsets = (i * n_bins + bins[:, None]) * n_bands + bands[None, :]
    belongs = tl.load(member + offsets, mask=mask, other=0.0)
    share = tl.sum(mean[:, None] * belongs, 0)
    tl.store(shares + i * n_bands + bands, share, mask=bands < n_bands)
