"""A pretrained encoder of Whisper (arXiv:2212.04356)."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from famx.frontend._pretrained import Pretrained
from famx.frontend._pretrained_folder import read_preprocessor, require_folder
from famx.frontend._spans import span_cells
from famx.nn.masks import length_mask
from famx.notation import SAMPLE_RATE, Seconds
from famx.registry import register

# in samples: a window of 25 ms and a hop of 10 ms; a frame of the encoder has two hops
WINDOW = 400
HOP = 160
FRAME = 2 * HOP


@register
class Whisper(Pretrained):
    """`W encoder(log-mel of 30 s) + b`; the encoder is that of `WhisperModel`.

    The signal is cut into pieces of `seconds`, the last one padded with silence, as in Whisper's
    own training; each piece passes the encoder alone. Frames after the end of the signal are
    dropped: n samples become `ceil(n / 320)` frames of 20 ms. So the padding of a batch changes
    nothing. Cells whose centres lie in a span of SpecAugment are 0.

    Args:
        path: folder that transformers has saved, with config.json and safetensors.
        frozen: whether the encoder is not trained; it then has no dropout either.
        seconds: length of a piece, 1 to 30. Less than 30 is faster where recordings are short,
            by the first position embeddings alone, with frames that Whisper has not learned.
        architecture: sizes of the encoder; None for those of the folder, which a run stores.
    """

    model_type: ClassVar[str] = "whisper"
    sizes: ClassVar[tuple[str, ...]] = (
        *("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
        *("num_mel_bins", "max_source_positions", "scale_embedding", "activation_function"),
        *("dropout", "attention_dropout", "activation_dropout"),
    )
    renamed: ClassVar[dict[str, str]] = {r"^(model\.)?encoder\.": ""}

    window: Float[Tensor, " w"]
    filters: Float[Tensor, "f bins"]

    def __init__(
        self,
        d_model: int,
        *,
        path: str | None = None,
        frozen: bool = True,
        seconds: Seconds = 30.0,
        architecture: dict[str, Any] | None = None,
    ):
        self.seconds = seconds
        super().__init__(d_model, path, frozen, architecture)
        self.n_positions = self.encoder.config.max_source_positions
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            num_frequency_bins=WINDOW // 2 + 1,
            num_mel_filters=self.encoder.config.num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)

    @classmethod
    def import_classes(cls) -> tuple[Any, Any]:
        """See `Pretrained.import_classes`."""
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperConfig, WhisperEncoder

    @classmethod
    def example(cls) -> dict[str, Any]:
        """See `Frontend.example`."""
        architecture = {
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "num_mel_bins": 20,
            "max_source_positions": 1500,
        }
        return {"frozen": False, "seconds": 1.0, "architecture": architecture}

    @classmethod
    def read_architecture(cls, path: str | None) -> dict[str, Any]:
        """See `Pretrained.read_architecture`."""
        architecture = super().read_architecture(path)
        read_preprocessor(require_folder(cls.model_type, path))  # the sampling rate
        return architecture

    def encoder_config(self) -> Any:
        """See `Pretrained.encoder_config`; the encoder has positions for one piece.

        Raises:
            ValueError: the encoder has not as many.
        """
        config = super().encoder_config()
        longest = config.max_source_positions * FRAME / SAMPLE_RATE
        if not 1 <= self.seconds <= longest:
            raise ValueError(f"seconds={self.seconds} must be between 1 and {longest:g}")
        config.max_source_positions = round(self.seconds * SAMPLE_RATE / FRAME)
        return config

    def fit(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Pretrained.fit`; the position embeddings are the first ones."""
        positions = weights["embed_positions.weight"]
        return weights | {"embed_positions.weight": positions[: self.n_positions]}

    def forward(
        self,
        signal: Float[Tensor, "b n"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """See `Frontend.forward`; cells whose centres lie in a span are 0."""
        # pieces, padded with silence
        batch, size = signal.shape
        n_samples = self.n_positions * FRAME
        n_pieces = -(-size // n_samples)
        x = signal.float().masked_fill(~length_mask(lengths, size), 0.0)
        pieces = pad(x, (0, n_pieces * n_samples - size)).view(batch * n_pieces, n_samples)
        # their spectrograms, and spans in that of the signal
        mel = self.log_mel(pieces)
        if spans is not None:
            of_signal = mel.view(batch, -1, mel.shape[2])
            n_windows = (lengths + HOP - 1) // HOP
            cells = span_cells(spans, n_windows, *of_signal.shape[1:])
            mel = of_signal.masked_fill(cells, 0.0).view(mel.shape)
        # the frames without those of the padding
        x = self.encoder(mel.mT.to(self.out.weight.dtype)).last_hidden_state
        x = x.reshape(batch, n_pieces * self.n_positions, x.shape[2])[:, : -(-size // FRAME)]
        return self.out(x), self.n_frames(lengths)

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of frames of signals with these numbers of samples."""
        return (lengths + FRAME - 1) // FRAME

    def log_mel(self, pieces: Float[Tensor, "p n"]) -> Float[Tensor, "p windows f"]:
        """Returns Whisper's spectrograms: log10, at most 8 below the highest, plus 4, over 4."""
        with torch.no_grad(), torch.autocast(pieces.device.type, enabled=False):
            spectrum = torch.stft(
                pieces, WINDOW, HOP, window=self.window.float(), return_complex=True
            )
            # the last window begins where the next piece does
            energy = spectrum[..., :-1].abs().square()
            x = (self.filters.float() @ energy).clamp(min=1e-10).log10()
            highest = x.amax((1, 2), keepdim=True)
            return (torch.maximum(x, highest - 8.0).mT + 4.0) / 4.0
