"""A pretrained encoder of wav2vec 2.0 (arXiv:2006.11477)."""

from typing import Any, ClassVar

from famx.frontend._convolved import ConvolvedSamples
from famx.registry import register


@register
class Wav2Vec2(ConvolvedSamples):
    """`W encoder(signal) + b`, see `ConvolvedSamples`; the encoder is `Wav2Vec2Model`.

    Args:
        path: folder that transformers has saved, with config.json and safetensors.
        frozen: whether the encoder is not trained; it then has no dropout either.
        architecture: sizes of the encoder; None for those of the folder, which a run stores.
    """

    model_type: ClassVar[str] = "wav2vec2"

    @classmethod
    def import_classes(cls) -> tuple[Any, Any]:
        """See `Pretrained.import_classes`."""
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        return Wav2Vec2Config, Wav2Vec2Model
