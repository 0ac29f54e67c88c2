"""Frontends: the interface."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from famx.notation import Modality


class Frontend(nn.Module, ABC):
    """Turns a padded batch of signals into frames, vectors of `d_model` channels.

    A frontend is built with `d_model`, a text frontend also with `vocab_size`. Padding changes
    nothing: the frames of a signal are the same in every batch.

    Attributes:
        modality: `Modality.SPEECH` for signals of samples at 16 kHz, `Modality.TEXT` for token ids,
            `Modality.IMAGE` for rows of pixels.
        sees_later: whether a frame of text depends on later tokens, so that no causal task can use
            the frontend.
        pixels: shape of a row of pixels, (columns, channels); empty for other signals.
    """

    modality: ClassVar[Modality]
    sees_later: ClassVar[bool] = False
    pixels: tuple[int, ...] = ()

    @abstractmethod
    def forward(
        self,
        signal: Shaped[Tensor, "b n *pixels"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """Returns the frames and how many of them each signal has.

        Args:
            lengths: samples, tokens or rows of each signal, at least 1.
            spans: rectangles to blank (SpecAugment, arXiv:1904.08779): start and width in time,
                start and width in mel, as fractions of the signal's length and of the mel bins.
        """

    @abstractmethod
    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of frames of signals of these lengths."""

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the options with which the contract tests build it, if the defaults do not."""
        return {}
