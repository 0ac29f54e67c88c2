"""The log-mel spectrogram as an image, cut into patches (AST, arXiv:2104.01778)."""

from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from famx.frontend._mel import MelSpectrogram, n_windows_of
from famx.frontend._patches import Patches
from famx.notation import Modality
from famx.registry import register


@register
class MelPatches(MelSpectrogram):
    """`x_p = W patch_p + b + e_mel`, from low to high mel bins, then in time.

    n windows of 25 ms, 10 ms apart, become `ceil(n / patch_time) * ceil(n_mels / patch_mels)`
    frames. `rotary=axial rotary.width=N` with N = ceil(n_mels / patch_mels) turns one half of the
    channels by the time of a patch, the other half by its place in the mel axis.

    Args:
        n_mels: mel bins between 0 and 8,000 Hz.
        patch_time: windows of a patch.
        patch_mels: mel bins of a patch; all of them by default, so that a patch is 40 ms of sound.
        normalize: zero mean and unit variance of each mel bin, over each utterance (`utterance`) or
            over all training data so far (`global`).
    """

    modality: ClassVar[Modality] = Modality.SPEECH

    def __init__(
        self,
        d_model: int,
        *,
        n_mels: int = 64,
        patch_time: int = 4,
        patch_mels: int = 64,
        normalize: Literal["utterance", "global"] = "utterance",
    ):
        super().__init__(n_mels, normalize)
        if patch_mels > n_mels:
            raise ValueError(f"patch_mels={patch_mels} must be at most n_mels={n_mels}")
        self.embed = Patches((patch_time, patch_mels), n_mels, 1, d_model)

    def forward(
        self,
        signal: Float[Tensor, "b n"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """See `Frontend.forward`; cells whose centres lie in a span are set to the mean."""
        x, n_windows = self.spectrogram(signal, lengths, spans)
        frames = self.embed(x.to(self.embed.weight.dtype)[..., None], n_windows)
        return frames, self.embed.n_patches(n_windows)

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of frames of signals with these numbers of samples."""
        return self.embed.n_patches(n_windows_of(lengths))
