"""Rectangles of time and bands that SpecAugment blanks (arXiv:1904.08779)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def span_cells(
    spans: Float[Tensor, "b m 4"], lengths: Int[Tensor, " b"], size: int, n_bands: int
) -> Bool[Tensor, "b {size} {n_bands}"]:
    """Returns True for the cells of frames and bands whose centre lies in any of the spans.

    Args:
        spans: start and width in time, start and width in bands, as fractions.
        lengths: number of frames of each signal.
        size: number of frames of the longest one.
    """
    time, time_width, band, band_width = spans.float()[..., None].unbind(2)
    # centres of frames and of bands, as fractions
    times = (torch.arange(size, device=spans.device) + 0.5) / lengths[:, None, None]
    bands = (torch.arange(n_bands, device=spans.device) + 0.5) / n_bands
    rows = (time <= times) & (times < time + time_width)
    columns = (band <= bands) & (bands < band + band_width)
    return rows.mT.float() @ columns.float() > 0
