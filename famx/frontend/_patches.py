"""Patches: rectangles of a picture, each of which becomes one vector."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.nn.masks import length_mask


class Patches(nn.Linear):
    """`x = W patch + b + e_column`, for patches from left to right, then from top to bottom.

    The learned e, 0 at first, tells at which height of a spectrogram, or where in the width of an
    image, a patch lies. Rotaries tell distances alone, of rows too.
    Rows and columns that do not fill a patch are padded with zeros. Rows beyond the length of a
    picture are set to zero too, so that padding changes nothing.

    Args:
        patch: rows and columns of a patch.
        columns: columns of the pictures.
        channels: channels of the pictures.
        d_model: channels of the vectors.
    """

    def __init__(self, patch: tuple[int, int], columns: int, channels: int, d_model: int):
        rows, width = patch
        if min(rows, width, columns, channels) < 1:
            raise ValueError(
                f"patches of {rows} x {width} in pictures of {columns} columns and {channels} "
                "channels: each must be at least 1"
            )
        super().__init__(rows * width * channels, d_model)
        self.rows = rows
        self.width = width
        self.per_row = -(-columns // width)
        self.column = nn.Parameter(torch.zeros(self.per_row, d_model))

    def forward(  # type: ignore[override]  # the lengths decide what is padding
        self, pictures: Float[Tensor, "b rows columns channels"], lengths: Int[Tensor, " b"]
    ) -> Float[Tensor, "b patches d"]:
        """Returns the vectors of all patches of the longest picture.

        Args:
            lengths: rows of each picture.
        """
        n_rows, n_columns = pictures.shape[1:3]
        real = pictures * length_mask(lengths, n_rows)[..., None, None]
        missing_columns = self.per_row * self.width - n_columns
        real = pad(real, (0, 0, 0, missing_columns, 0, -n_rows % self.rows))
        # (b, patch row, row, patch column, column, channels), in the order of the patches
        cut = real.unflatten(2, (self.per_row, self.width)).unflatten(1, (-1, self.rows))
        patches = cut.permute(0, 1, 3, 2, 4, 5).flatten(3)
        return (super().forward(patches) + self.column).flatten(1, 2)

    def n_patches(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of patches of pictures with these numbers of rows."""
        return (lengths + self.rows - 1) // self.rows * self.per_row
