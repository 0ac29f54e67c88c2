"""Layers that torch.compile compiles for training, and that run as they are in evaluation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from famx.model import Model, ModelWithDecoder
from famx.nn.text_decoder import TextDecoder

MAX_COMPILATIONS = 64  # of a forward method; later ones run without compilation


def compile_layers(model: nn.Module) -> None:
    """Compiles the layers of a model in place, or all of a model without layers.

    Layers of one kind share their kernels, so compilation takes as long as for one of them. Batches
    of training have few and fixed shapes, and each shape gets kernels of its own; those of
    evaluation have many.
    """
    # each shape and kind of layer is one compilation of the same code
    torch._dynamo.config.recompile_limit = MAX_COMPILATIONS
    layers = list(model.layers) if isinstance(model, Model) else [model]
    if isinstance(model, ModelWithDecoder) and isinstance(model.decoder, TextDecoder):
        layers += [*model.decoder.text_layers, *model.decoder.memory_layers]
    for layer in layers:
        layer.forward = _compiled_in_training(layer)


def _compiled_in_training(module: nn.Module) -> Callable[..., Tensor]:
    eager = module.forward
    compiled = torch.compile(eager, dynamic=False)

    def forward(*inputs: object, **options: object) -> Tensor:
        function = compiled if module.training else eager
        return function(*inputs, **options)

    return forward
