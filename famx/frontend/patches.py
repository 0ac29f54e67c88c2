"""Images cut into square patches, each of which becomes a frame (ViT, arXiv:2010.11929)."""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from famx.frontend._patches import Patches
from famx.frontend.base import Frontend
from famx.notation import Modality, UserError
from famx.registry import register


@register
class ImagePatches(Frontend):
    """`x_p = W patch_p + b + e_column`, row by row.

    h x w pixels become `ceil(h / p) * ceil(w / p)` frames; e is learned and tells the column of a
    patch.

    The images of a batch may differ in height. `rotary=axial rotary.width=N` with N = ceil(w / p)
    turns one half of the channels by the row of a patch, the other half by its column.

    Args:
        width: w, columns of pixels of all images.
        channels: colours of a pixel.
        patch: p, rows and columns of a patch, in pixels.
    """

    modality: ClassVar[Modality] = Modality.IMAGE

    def __init__(self, d_model: int, *, width: int = 8, channels: int = 1, patch: int = 2):
        super().__init__()
        self.pixels = (width, channels)
        self.embed = Patches((patch, patch), width, channels, d_model)

    def forward(
        self,
        signal: Float[Tensor, "b h w c"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """Returns the frames of images and how many each has; images have no `spans`.

        Raises:
            UserError: the images have another width or number of channels.
        """
        if signal.shape[2:] != self.pixels:
            width, channels = signal.shape[2:]
            raise UserError(
                f"images of width {width} and {channels} channels do not fit "
                f"frontend.width={self.pixels[0]}, frontend.channels={self.pixels[1]}"
            )
        return self.embed(signal.to(self.embed.weight.dtype), lengths), self.n_frames(lengths)

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of frames of images with these numbers of rows."""
        return self.embed.n_patches(lengths)
