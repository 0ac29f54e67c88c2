"""Log-mel energies of 25 ms windows, then two strided convolutions to frames of 40 ms."""

from math import ceil, gcd
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from famx.frontend._mel import MAX_SIZE, MelSpectrogram, n_windows_of
from famx.nn.masks import length_mask
from famx.nn.pooling import centered
from famx.notation import Modality
from famx.registry import register

CONTEXT_GROUPS = 8  # groups of the context convolution


@register
class LogMel(MelSpectrogram):
    """`y + gelu(conv(y))`, `y = z - mean z`, `z = W conv(conv(x))`, x the normalised spectrogram.

    That is `log(mel |FFT(hann signal)|^2)` with zero mean and unit variance of each bin.

    n samples become `ceil(n_windows / 4)` frames, `n_windows = 1 + ceil(max(0, n - 400) / 160)`:
    every sample lies in a window, also in short signals. All positions after the end of an
    utterance are set to zero before each step, so that padding changes nothing.
    (Dong et al. 2018, "Speech-Transformer", ICASSP)

    The mean is over the frames of an utterance. Since relu is never negative, it is half of the
    energy of z at first, and CTC would increase its share until all frames are nearly the same,
    before it finds the tokens.

    Args:
        n_mels: mel bins between 0 and 8,000 Hz.
        channels: channels of the second convolution; the first has half as many.
        context: width in frames, odd, of a last grouped convolution, which adds to each frame a
            function of its neighbours as a relative position embedding (wav2vec 2.0,
            arXiv:2006.11477).
        normalize: zero mean and unit variance of each mel bin, over each utterance (`utterance`) or
            over all training data so far (`global`), in all processes of a run. With `global`,
            the mean of z stays.
    """

    modality: ClassVar[Modality] = Modality.SPEECH

    def __init__(
        self,
        d_model: int,
        *,
        n_mels: int = 80,
        channels: int = 32,
        context: int = 15,
        normalize: Literal["utterance", "global"] = "utterance",
    ):
        super().__init__(n_mels, normalize)
        if not 2 <= channels <= MAX_SIZE:
            raise ValueError(f"channels={channels} must be between 2 and {MAX_SIZE:,}")
        if not 1 <= context <= MAX_SIZE or context % 2 == 0:
            raise ValueError(
                f"context={context} must be odd and at most {MAX_SIZE:,}: a frame, and as many "
                "before it as after it"
            )
        # each convolution halves time and mel bins
        first = nn.Conv2d(1, channels // 2, 3, stride=2, padding=1)
        second = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.convolutions = nn.ModuleList([first, second])
        # a bias would be a part of the mean
        self.out = nn.Linear(channels * ceil(n_mels / 4), d_model, bias=normalize == "global")
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(second.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.out.weight, nonlinearity="linear")
        for layer in (first, second, self.out):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        groups = gcd(d_model, CONTEXT_GROUPS)
        self.context = nn.Conv1d(d_model, d_model, context, padding=context // 2, groups=groups)

    def forward(
        self,
        signal: Float[Tensor, "b n"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """See `Frontend.forward`; cells whose centres lie in a span are set to the mean."""
        x, lengths = self.spectrogram(signal, lengths, spans)
        # two strided convolutions
        x = x.to(self.out.weight.dtype)[..., None]
        for convolution in self.convolutions:
            x = x * length_mask(lengths, x.shape[1])[..., None, None]
            # channels are last in memory, which is 1.7x faster on a CPU
            x = relu(convolution(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
            lengths = (lengths + 1) // 2
        # frames, and their context
        x = self.out(x.flatten(2)) * length_mask(lengths, x.shape[1])[..., None]
        if self.normalize == "utterance":
            x = centered(x, lengths)
        return x + gelu(self.context(x.mT)).mT, lengths

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of frames of signals with these numbers of samples."""
        return (n_windows_of(lengths) + 3) // 4
