"""Matrices as heat maps."""

from functools import lru_cache
from math import ceil

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from famx.monitoring.metrics import HeatMap

# black through purple and orange to pale yellow, equally spaced
HEAT = (
    (0.0, 0.0, 0.02),
    (0.34, 0.06, 0.43),
    (0.73, 0.21, 0.33),
    (0.98, 0.55, 0.04),
    (0.99, 1.0, 0.64),
)


GREY = 0.6


ROW = 12  # pixels, enough for a name


WIDTH = (
    240  # pixels of a matrix of few columns: with its names about what TensorBoard's cards are wide
)


def heat_map(picture: HeatMap) -> UInt8[np.ndarray, "height width 3"]:
    """A matrix from dark to pale, the names of its rows beside it, what its columns and colours mean beneath.

    Colours go from the 2 % quantile to that of 98 %, for a few outliers would leave the rest dark; where these read
    the same, from the smallest value to the largest; where these do, from 0 or the value below it. Where nothing is
    negative and the quantiles of what is positive are more than 30 times apart, they are logarithmic, and 0 is as dark
    as the least. What is not finite is grey.
    """
    values, known = picture.values.float(), picture.values.isfinite()
    low, high = _limits(values[known])
    least, most = _limits(values[known & (values > 0)])
    if logarithmic := bool((values[known] >= 0).all()) and 0 < 30 * least < most:
        low, high = least, most
    ends = torch.tensor([low, high])
    at, (start, stop) = (values.log(), ends.log()) if logarithmic else (values, ends)
    place = torch.where(
        known, ((at - start) / (stop - start).clamp(min=1e-30)).clamp(0, 1), torch.nan
    )
    names, font = _names(picture.rows), ImageFont.load_default()
    width = max(2, WIDTH // place.shape[1]) * place.shape[1]
    whole = Image.new("RGB", (names.width + width, names.height + 3 * ROW), "white")
    whole.paste(names, (0, 0))
    for part, top, height in (
        (place, 0, names.height),
        (torch.linspace(0, 1, WIDTH)[None], names.height + ROW, ROW),
    ):
        body = Image.fromarray(_paint(part)).resize((width, height), Image.Resampling.NEAREST)
        whole.paste(body, (names.width, top))
    told = picture.columns + ("" if known.all() else "; grey: not defined")
    texts = ((0.0, 0, told), (0.0, 2, f"{low:.3g}"), (0.5, 2, "logarithmic" if logarithmic else ""))
    for place, line, text in (*texts, (1.0, 2, f"{high:.3g}")):
        left = names.width + place * (width - font.getlength(text))
        ImageDraw.Draw(whole).text((left, names.height + line * ROW), text, fill="black", font=font)
    return np.array(whole)


def _limits(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """What is darkest and what is palest."""
    if not len(values):
        return 0.0, 0.0
    for ends in ([0.02, 0.98], [0.0, 1.0]):
        low, high = values.quantile(torch.tensor(ends), interpolation="nearest").tolist()
        if f"{low:.3g}" != f"{high:.3g}":  # as it is written beneath
            return low, high
    return min(low, 0.0), high


def _paint(place: Float[Tensor, "rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Colours of places from 0 to 1; grey for NaN."""
    place = place * (len(HEAT) - 1)
    below = place.nan_to_num().floor().clamp(max=len(HEAT) - 2)
    colours = torch.tensor(HEAT)
    rgb = torch.lerp(colours[below.long()], colours[below.long() + 1], (place - below)[..., None])
    return (255 * rgb.nan_to_num(GREY)).round().byte().numpy()


@lru_cache(maxsize=16)
def _names(rows: tuple[str, ...]) -> Image.Image:
    """The names of a matrix's rows, the same for all pictures of a run's tensors."""
    font = ImageFont.load_default()
    image = Image.new(
        "RGB", (ceil(max(font.getlength(row) for row in rows)) + 6, ROW * len(rows)), "white"
    )
    for i, row in enumerate(rows):
        ImageDraw.Draw(image).text((2, i * ROW), row, fill="black", font=font)
    return image
