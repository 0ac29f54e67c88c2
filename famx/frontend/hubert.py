"""A pretrained encoder of HuBERT (arXiv:2106.07447)."""

from typing import Any, ClassVar

from famx.frontend._convolved import SIZES, ConvolvedSamples
from famx.registry import register


@register
class Hubert(ConvolvedSamples):
    """`W encoder(signal) + b`, see `ConvolvedSamples`; the encoder is `HubertModel`.

    Args:
        path: folder that transformers has saved, with config.json and safetensors.
        frozen: whether the encoder is not trained; it then has no dropout either.
        architecture: sizes of the encoder; None for those of the folder, which a run stores.
    """

    model_type: ClassVar[str] = "hubert"
    sizes: ClassVar[tuple[str, ...]] = (*SIZES, "feat_proj_layer_norm")

    @classmethod
    def import_classes(cls) -> tuple[Any, Any]:
        """See `Pretrained.import_classes`."""
        from transformers import HubertConfig, HubertModel

        return HubertConfig, HubertModel
