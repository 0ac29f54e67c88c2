"""Parts in, model out: the one place that knows how the rooms of a model fit together."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.config.schema import complete_choice
from famx.notation import UserError
from famx.registry import LAYER_ROOMS, build, get, suggest


class Model(nn.Module):
    """Reads a signal, passes it through layers, scores the vocabulary at every frame.

    Args:
        frontend: the signal to frames of `d_model` channels.
        layers: each from frames to frames.
        norm: before the scores.
    """

    def __init__(
        self,
        frontend: nn.Module,
        layers: list[nn.Module],
        norm: nn.Module,
        d_model: int,
        vocab_size: int,
    ):
        super().__init__()
        self.frontend, self.layers, self.norm = frontend, nn.ModuleList(layers), norm
        self.score = nn.Linear(d_model, vocab_size)
        self.connects_layers = any(
            getattr(module, "connects_layers", False) for module in self.layers.modules()
        )

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
        mask = (
            None
            if full
            else (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None]
        )
        if state is None and self.connects_layers:
            state = {"whole": True}
        for layer in self.layers:
            x = layer(x, mask=mask, state=state)
        return self.score(self.norm(x)), lengths


def layer_choices(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choice of each layer: as `model.layers` lists them, `model.n_layers` alike where it is None."""
    model = config["model"]
    given = model.get("layers")
    if given is None:
        if model.get("draw"):
            raise UserError(
                f"model={model['name']} has no layers before they are drawn: see famx.experiment.settle"
            )
        given = [{}] * model["n_layers"]
    if not isinstance(given, list) or not given:
        raise UserError(f"model.layers={given} must be a list of one layer or more")
    for own in given:
        if not isinstance(own, Mapping):
            raise UserError(
                f"model.layers: {own!r} is not a layer, such as {{attention: multihead, n_heads: 4}}"
            )
    return [layer_choice(config, own) for own in given]


def layer_choice(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All that one layer is made of: its number of heads, and of each room of a layer a part and its hyperparameters.

    Args:
        given: what this layer has of its own, `n_heads` or a room's part, by name or as a mapping. What a mapping
            leaves out is as in `config` where that names the same part, else the part's default.

    Raises:
        UserError: a layer has no such room, a room no such part, a part no such hyperparameter.
    """
    for key in given:
        if key not in ("n_heads", *LAYER_ROOMS):
            raise UserError(
                f"model.layers: a layer has no {key}{suggest(str(key), ('n_heads', *LAYER_ROOMS))}"
            )
    choice: dict[str, Any] = {"n_heads": given.get("n_heads", config["model"]["n_heads"])}
    for room in LAYER_ROOMS:
        own = given.get(room, {})
        own = dict(own) if isinstance(own, Mapping) else {"name": own}
        usual = config[room]
        same = own.setdefault("name", usual["name"]) == usual["name"]
        choice[room] = complete_choice(room, usual | own if same else own)
    return choice


def build_layer(choice: Mapping[str, Any], d_model: int, causal: bool) -> nn.Module:
    """Builds the layer of a complete choice.

    Raises:
        UserError: a part refuses its sizes.
    """
    n_heads = choice["n_heads"]
    if not isinstance(n_heads, int) or n_heads < 1 or d_model % n_heads:
        raise UserError(f"model: d_model={d_model} is not a multiple of n_heads={n_heads}")

    def attention() -> nn.Module:
        rotary = build("rotary", choice["rotary"], head_dim=d_model // n_heads)
        context = {"d_model": d_model, "n_heads": n_heads, "rotary": rotary, "causal": causal}
        return build("attention", choice["attention"], **context)

    factories = {
        room: partial(build, room, choice[room], d_model=d_model)
        for room in ("feedforward", "norm")
    }
    return build(
        "layer", choice["layer"], d_model=d_model, causal=causal, attention=attention, **factories
    )


def build_model(config: Mapping[str, Any], vocab_size: int) -> Model:
    """Builds the model that a composed config describes; `frontend` and `task` name what it reads and learns.

    Raises:
        UserError: a part refuses its sizes.
    """
    task = get("task", config["task"]["name"])
    d_model = config["model"]["d_model"]
    worn = (
        config["frontend"]
        if config["frontend"]["name"] != "usual"
        else {"name": task.usual["frontend"]}
    )
    frontend = build("frontend", worn, d_model=d_model, vocab_size=vocab_size)
    layers = [build_layer(choice, d_model, task.causal) for choice in layer_choices(config)]
    return Model(
        frontend, layers, build("norm", config["norm"], d_model=d_model), d_model, vocab_size
    )
