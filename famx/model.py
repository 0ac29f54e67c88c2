"""Parts in, model out: the one place that knows how the rooms of a model fit together."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.notation import UserError
from famx.registry import build, get


class Model(nn.Module):
    """Reads a signal, passes it through layers, scores the vocabulary at every frame.

    Args:
        frontend: the signal to frames of `d_model` channels.
        layers: each from frames to frames.
        norm: before the scores.
    """

    def __init__(self, frontend: nn.Module, layers: list[nn.Module], norm: nn.Module, d_model: int, vocab_size: int):
        super().__init__()
        self.frontend, self.layers, self.norm = frontend, nn.ModuleList(layers), norm
        self.score = nn.Linear(d_model, vocab_size)

    def forward(
        self,
        inputs: Tensor,
        lengths: Int[Tensor, " b"] | None = None,
        spans: Float[Tensor, "b m 4"] | None = None,
        state: dict | None = None,
    ) -> tuple[Float[Tensor, "b t v"], Int[Tensor, " b"]]:
        """
        Args:
            inputs: raw samples or token ids, (b n).
            lengths: of the inputs; None where no row is padded.
            spans: rectangles to hide in the spectrogram (SpecAugment), as fractions.
            state: what the parts keep between the steps of a decoding.

        Returns:
            Scores, and how many frames of each row are real.
        """
        full = lengths is None
        if full:
            lengths = torch.full((inputs.shape[0],), inputs.shape[1], device=inputs.device)
        x, lengths = self.frontend(inputs, lengths, spans)
        mask = None if full else (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None]
        for layer in self.layers:
            x = layer(x, mask=mask, state=state)
        return self.score(self.norm(x)), lengths


def build_model(config: Mapping[str, Any], vocab_size: int) -> Model:
    """Builds the model that a composed config describes; `frontend` and `task` name what it reads and learns.

    Raises:
        UserError: a part refuses its sizes.
    """
    task = get("task", config["task"]["name"])
    causal = task.causal
    d_model, n_heads, n_layers = (config["model"][key] for key in ("d_model", "n_heads", "n_layers"))
    if n_layers < 1 or n_heads < 1 or d_model % n_heads:
        raise UserError(f"model: d_model={d_model} is not a multiple of n_heads={n_heads}, or n_layers={n_layers} < 1")
    norm = partial(build, "norm", config["norm"], d_model=d_model)
    feedforward = partial(build, "feedforward", config["feedforward"], d_model=d_model)

    def attention() -> nn.Module:
        rotary = build("rotary", config["rotary"], head_dim=d_model // n_heads)
        context = {"d_model": d_model, "n_heads": n_heads, "rotary": rotary, "causal": causal}
        return build("attention", config["attention"], **context)

    worn = config["frontend"] if config["frontend"]["name"] != "usual" else {"name": task.usual["frontend"]}
    frontend = build("frontend", worn, d_model=d_model, vocab_size=vocab_size)
    context = {"d_model": d_model, "attention": attention, "feedforward": feedforward, "norm": norm, "causal": causal}
    layers = [build("layer", config["layer"], **context) for _ in range(n_layers)]
    return Model(frontend, layers, norm(), d_model, vocab_size)
