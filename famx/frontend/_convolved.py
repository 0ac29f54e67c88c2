"""Encoders of samples: strided convolutions, then layers of attention (wav2vec 2.0, HuBERT)."""

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.frontend._pretrained import Pretrained
from famx.frontend._pretrained_folder import read_preprocessor, require_folder
from famx.frontend._spans import span_cells
from famx.frontend.waveform import standardized
from famx.nn.masks import length_mask

SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps", "do_stable_layer_norm"),
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias"),
    *("feat_extract_norm", "feat_extract_activation"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
    *("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"),
)
# an encoder of two layers, for tests
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "do_normalize": True,
}


class ConvolvedSamples(Pretrained):
    """`W encoder(signal) + b`; the frames of an utterance are those of the library's model alone.

    A signal has zero mean and unit variance if the folder says so. n samples become
    `floor((n - 400) / 320) + 1` frames of 20 ms, at least one, by the published convolutions. The
    library's own batches depend on padding: where the norm of the first convolution is over time
    (`feat_extract_norm=group`), it counts padding too. Here its statistics are those of the real
    frames, and no layer attends to padding. Of SpecAugment, frames in a span of time are the
    learned mask of the pretraining, and bands are channels set to zero, both after the convolutions
    (wav2vec 2.0, arXiv:2006.11477, section 4.3).
    """

    sizes: ClassVar[tuple[str, ...]] = SIZES

    def __init__(
        self,
        d_model: int,
        *,
        path: str | None = None,
        frozen: bool = True,
        architecture: dict[str, Any] | None = None,
    ):
        super().__init__(d_model, path, frozen, architecture)
        config = self.encoder.config
        self.normalize = bool(self.architecture.get("do_normalize", True))
        self.convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        # samples of one frame
        self.width = 1
        for width, stride in reversed(self.convolutions):
            self.width = (self.width - 1) * stride + width
        # a mask of the frames, which is not trained
        self.encoder.masked_spec_embed.requires_grad_(False)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """See `Frontend.example`."""
        return {"frozen": False, "architecture": dict(TINY)}

    @classmethod
    def read_architecture(cls, path: str | None) -> dict[str, Any]:
        """See `Pretrained.read_architecture`; `do_normalize` is from preprocessor_config.json."""
        architecture = super().read_architecture(path)
        settings = read_preprocessor(require_folder(cls.model_type, path))
        return architecture | {"do_normalize": settings.get("do_normalize", True)}

    def forward(
        self,
        signal: Float[Tensor, "b n"],
        lengths: Int[Tensor, " b"],
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Int[Tensor, " b"]]:
        """See `Frontend.forward`; spans blank frames and channels after the convolutions."""
        # the signal; a short one is padded to one frame
        real = length_mask(lengths, signal.shape[1])
        x = signal.float().masked_fill(~real, 0.0)
        if self.normalize:
            x = standardized(x, real, lengths)
        if x.shape[1] < self.width:
            x = pad(x, (0, self.width - x.shape[1]))
        x, lengths = self._convolve(x.to(self.out.weight.dtype), lengths.clamp(min=self.width))
        # the frames; the projection of wav2vec 2.0 also returns its input
        x = self.encoder.feature_projection(x)
        if isinstance(x, tuple):
            x = x[0]
        if spans is not None:
            x = self._blank(x, span_cells(spans, lengths, *x.shape[1:]))
        return self.out(self._attend(x, lengths)), lengths

    def n_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Returns the number of frames of signals with these numbers of samples."""
        lengths = lengths.clamp(min=self.width)
        for width, stride in self.convolutions:
            lengths = (lengths - width) // stride + 1
        return lengths

    def _convolve(
        self, x: Float[Tensor, "b n"], lengths: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t c"], Int[Tensor, " b"]]:
        """Returns the frames of the convolutions, which read no padding for a real frame."""
        x = x[:, None]
        layers = self.encoder.feature_extractor.conv_layers
        for i, (layer, (width, stride)) in enumerate(zip(layers, self.convolutions, strict=True)):
            lengths = (lengths - width) // stride + 1
            if i == 0 and self.encoder.config.feat_extract_norm == "group":
                x = layer.activation(norm_over_time(layer.conv(x), lengths, layer.layer_norm))
            else:
                x = layer(x)
        return x.mT, lengths

    def _blank(
        self, x: Float[Tensor, "b t c"], cells: Bool[Tensor, "b t c"]
    ) -> Float[Tensor, "b t c"]:
        """Returns frames with the mask where a span covers all channels, and zeros in others."""
        mask = self.encoder.masked_spec_embed.to(x.dtype)
        return torch.where(cells.all(-1, keepdim=True), mask, x.masked_fill(cells, 0.0))

    def _attend(
        self, x: Float[Tensor, "b t c"], lengths: Int[Tensor, " b"]
    ) -> Float[Tensor, "b t c"]:
        """Returns the output of the layers.

        The library's own loop reads the mask on the host, and skips layers at random in training.
        """
        encoder = self.encoder.encoder
        is_prenorm = self.encoder.config.do_stable_layer_norm
        real = length_mask(lengths, x.shape[1])
        x = x * real[..., None]
        x = x + encoder.pos_conv_embed(x)
        x = encoder.dropout(x if is_prenorm else encoder.layer_norm(x))
        for layer in encoder.layers:
            x = layer(x, attention_mask=real[:, None, None])
        return encoder.layer_norm(x) if is_prenorm else x


def norm_over_time(
    x: Float[Tensor, "b c t"], lengths: Int[Tensor, " b"], norm: nn.GroupNorm
) -> Float[Tensor, "b c t"]:
    """Returns each channel with zero mean and unit variance over its real frames, then scaled.

    Without padding this is `norm`, which has a group for each channel.
    """
    real = length_mask(lengths, x.shape[2])[:, None]
    count = lengths[:, None, None]
    wide = x.float()
    centred = wide - (wide * real).sum(2, keepdim=True) / count
    variance = (centred * real).square().sum(2, keepdim=True) / count
    y = centred * (variance + norm.eps).rsqrt()
    return (y * norm.weight[:, None] + norm.bias[:, None]).to(x.dtype)
