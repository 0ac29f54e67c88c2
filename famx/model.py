"""The model: a frontend, layers and output scores, and the same with a decoder of texts.

Only this module combines rooms to layers.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from famx.config.schema import DEFAULT, complete_choice
from famx.frontend.base import Frontend
from famx.nn.encoding import Encoding, text_limits
from famx.nn.hooks import HasExemptions, connect_layers
from famx.nn.masks import length_mask
from famx.nn.state import DecodeState
from famx.nn.text_decoder import TextDecoder
from famx.nn.transducer import TransducerDecoder
from famx.notation import UserError, suggest
from famx.registry import LAYER_ROOMS, build, get

LAYER_KEYS = ("n_heads", *LAYER_ROOMS)  # keys of an entry of `model.layers`
# guarantees of a block or layer without which it does not fit into a decoder
DECODER_CONTRACTS = ("causal", "causal_with_memory", "attends_to_memory", "memory_mask_obeyed")


class Model(nn.Module):
    """Turns a signal into frames, passes them through layers, and scores the vocabulary.

    Args:
        frontend: maps the signal to frames of `d_model` channels.
        layers: each maps frames to frames.
        norm: applied to the frames of the last layer, before the scores.
        d_model: channels per frame.
        vocab_size: scores per frame.
    """

    def __init__(
        self,
        frontend: Frontend,
        layers: list[nn.Module],
        norm: nn.Module,
        d_model: int,
        vocab_size: int,
    ):
        super().__init__()
        self.frontend = frontend
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.score: nn.Module = nn.Linear(d_model, vocab_size)
        self.connects_layers = connect_layers(self.layers)

    def forward(
        self,
        inputs: Shaped[Tensor, "b n *pixels"],
        lengths: Int[Tensor, " b"] | None = None,
        spans: Float[Tensor, "b m 4"] | None = None,
        state: DecodeState | None = None,
        scored_layer: int | None = None,
    ) -> tuple[Float[Tensor, "rows t v"], Int[Tensor, " rows"]]:
        """Returns the scores, and the number of frames of each row without padding.

        Args:
            inputs: samples of audio, token ids or rows of pixels.
            lengths: lengths of the inputs; None if no row is padded.
            spans: rectangles to blank in the spectrogram (SpecAugment), as fractions.
            state: decode state of the sequences that the inputs continue.
            scored_layer: number, from 1, of an earlier layer whose frames are scored too; its rows
                follow those of the last layer.
        """
        x, lengths = self.frames(inputs, lengths, spans, state, scored_layer)
        return self.score(x), lengths

    def frames(
        self,
        inputs: Shaped[Tensor, "b n *pixels"],
        lengths: Int[Tensor, " b"] | None = None,
        spans: Float[Tensor, "b m 4"] | None = None,
        state: DecodeState | None = None,
        scored_layer: int | None = None,
    ) -> tuple[Float[Tensor, "rows t d"], Int[Tensor, " rows"]]:
        """Returns the frames before the scores, and their number in each row without padding."""
        # frames, and a mask of those that are not padding
        is_padded = lengths is not None
        if lengths is None:
            lengths = torch.full((inputs.shape[0],), inputs.shape[1], device=inputs.device)
        x, lengths = self.frontend(inputs, lengths, spans)
        mask = length_mask(lengths, x.shape[1])[:, None, None] if is_padded else None

        # layers that exchange messages need a state in a full pass too
        if state is None and self.connects_layers:
            state = DecodeState(incremental=False)
        if scored_layer is not None and not 0 < scored_layer < len(self.layers):
            raise ValueError(f"scored_layer={scored_layer} is no earlier one of {len(self.layers)}")
        earlier = []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, mask=mask, state=state)
            if number == scored_layer:
                earlier.append(x)
        if earlier:
            x = torch.cat([x, *earlier])
            lengths = lengths.repeat(2)
        return self.norm(x), lengths


class ModelWithDecoder(Model):
    """A model with a decoder of texts, which reads the normed frames.

    Args:
        decoder: the decoder; the other arguments are those of `Model`.
        scores_frames: whether it scores the frames too. Otherwise it gives them as they are in the
            place of their scores.
    """

    def __init__(
        self,
        frontend: Frontend,
        layers: list[nn.Module],
        norm: nn.Module,
        d_model: int,
        vocab_size: int,
        decoder: TextDecoder | TransducerDecoder,
        scores_frames: bool = True,
    ):
        super().__init__(frontend, layers, norm, d_model, vocab_size)
        self.decoder = decoder
        if not scores_frames:
            self.score = nn.Identity()

    def forward(  # type: ignore[override]  # one call, as several processes require
        self,
        inputs: Shaped[Tensor, "b n *pixels"],
        lengths: Int[Tensor, " b"] | None = None,
        spans: Float[Tensor, "b m 4"] | None = None,
        text: Int[Tensor, "b u"] | None = None,
        text_lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Returns the scores of the frames, and their number in each row, as `Model` does.

        With `text`, the third value is that of `text_scores`.
        """
        encoding = self.encode(inputs, lengths, spans)
        if text is None:
            return encoding.scores, encoding.lengths
        text_scores = self.text_scores(text, encoding, text_lengths)
        return encoding.scores, encoding.lengths, text_scores

    def encode(
        self,
        inputs: Shaped[Tensor, "b n *pixels"],
        lengths: Int[Tensor, " b"] | None = None,
        spans: Float[Tensor, "b m 4"] | None = None,
    ) -> Encoding:
        """See `famx.nn.encoding.EncoderDecoder.encode`."""
        x, lengths = self.frames(inputs, lengths, spans)
        limits = text_limits(lengths, self.frontend.modality)
        return Encoding(x, lengths, self.score(x), limits)

    def predict(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        state: DecodeState | None = None,
        text_lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b u v"]:
        """See `famx.nn.encoding.EncoderDecoder.predict`."""
        return self.decoder(text, encoding, state, text_lengths)

    def text_scores(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        text_lengths: Int[Tensor, " b"] | None = None,
    ) -> Tensor:
        """See `famx.nn.encoding.EncoderDecoder.text_scores`."""
        return self.decoder.text_scores(text, encoding, text_lengths)


def layer_choices(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the complete choice of each layer.

    The layers are those of `model.layers`, or `model.n_layers` equal ones if that is None.

    Raises:
        UserError: `model.layers` is not a list of layers, or has not been sampled yet.
    """
    # without entries, all layers have the parts of the config
    model = config["model"]
    entries = model.get("layers")
    if entries is None:
        if model.get("draw"):
            raise UserError(
                f"model={model['name']} has no layers before they are sampled: "
                "resolve the config first, by famx.experiment.resolve"
            )
        entries = [{}] * model["n_layers"]
    # the schema does not check entries
    if not isinstance(entries, list) or not entries:
        raise UserError(f"model.layers={entries} must be a list of at least one layer")
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise UserError(
                "model.layers: entries must be mappings like {attention: multihead, n_heads: 4}, "
                f"got {entry!r}"
            )
    return [layer_choice(config, entry) for entry in entries]


def layer_choice(config: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the complete choice of one layer: number of heads, and one part of each room.

    Args:
        entry: the differences from `config`: `n_heads`, or the part of a room, as a name or as a
            mapping with hyperparameters. Hyperparameters that the entry does not set keep the
            values of `config` if the part is the same, else they have the part's defaults.

    Raises:
        UserError: a room, part or hyperparameter of the entry does not exist.
    """
    for key in entry:
        if key not in LAYER_KEYS:
            raise UserError(f"model.layers: a layer has no {key}{suggest(str(key), LAYER_KEYS)}")
    choice: dict[str, Any] = {"n_heads": entry.get("n_heads", config["model"]["n_heads"])}
    for room in LAYER_ROOMS:
        default = config[room]
        override = entry.get(room, {})
        part = dict(override) if isinstance(override, Mapping) else {"name": override}
        part.setdefault("name", default["name"])
        if part["name"] == default["name"]:
            part = default | part
        choice[room] = complete_choice(room, part)
    return choice


def build_layer(choice: Mapping[str, Any], d_model: int, causal: bool) -> nn.Module:
    """Builds the layer of a complete choice.

    Raises:
        UserError: a part does not support the sizes.
    """
    n_heads = choice["n_heads"]
    if not isinstance(n_heads, int) or n_heads < 1 or d_model % n_heads:
        raise UserError(f"model: d_model={d_model} is not a multiple of n_heads={n_heads}")

    # a layer may need several modules of a room, so it receives factories
    def build_attention() -> nn.Module:
        rotary = build("rotary", choice["rotary"], head_dim=d_model // n_heads)
        return build(
            "attention",
            choice["attention"],
            d_model=d_model,
            n_heads=n_heads,
            rotary=rotary,
            causal=causal,
        )

    return build(
        "layer",
        choice["layer"],
        d_model=d_model,
        causal=causal,
        attention=build_attention,
        feedforward=partial(build, "feedforward", choice["feedforward"], d_model=d_model),
        norm=partial(build, "norm", choice["norm"], d_model=d_model),
    )


def build_model(
    config: Mapping[str, Any], vocab_size: int, input_vocab_size: int | None = None
) -> Model:
    """Builds the model of a composed config; its `task` decides causality and the default frontend.

    Args:
        vocab_size: scores per frame.
        input_vocab_size: number of different token ids of the inputs, where they are not those of
            the scores.

    Raises:
        UserError: a part does not support the sizes.
    """
    task = get("task", config["task"]["name"])
    d_model = config["model"]["d_model"]
    frontend_config = config["frontend"]
    if frontend_config["name"] == DEFAULT:
        frontend_config = {"name": task.default_parts["frontend"]}
    frontend = build(
        "frontend", frontend_config, d_model=d_model, vocab_size=input_vocab_size or vocab_size
    )
    layers = [build_layer(choice, d_model, task.causal) for choice in layer_choices(config)]
    norm = build("norm", config["norm"], d_model=d_model)
    if task.decoder_kind is None:
        return Model(frontend, layers, norm, d_model, vocab_size)
    decoder = build_decoder(config, vocab_size, task.decoder_kind)
    scores_frames = "frames" in task.other_outputs
    return ModelWithDecoder(frontend, layers, norm, d_model, vocab_size, decoder, scores_frames)


def decoder_layers(config: Mapping[str, Any]) -> int:
    """Returns the number of pairs of layers of a decoder; by default half of the model's layers."""
    model = config["model"]
    n_pairs = model.get("decoder_layers")
    return max(1, model["n_layers"] // 2) if n_pairs is None else n_pairs


def build_decoder(
    config: Mapping[str, Any], vocab_size: int, kind: str
) -> TextDecoder | TransducerDecoder:
    """Builds the decoder of a composed config; its layers have the parts of the config.

    Args:
        kind: `decoder_kind` of the task.

    Raises:
        UserError: a part does not support the sizes, or a guarantee that decoders need.
    """
    d_model = config["model"]["d_model"]
    embedding = build("frontend", {"name": "tokens"}, d_model=d_model, vocab_size=vocab_size)
    if kind == "transducer":
        return TransducerDecoder(embedding, d_model, vocab_size)
    choice = layer_choice(config, {})
    for room in ("attention", "layer"):
        _require_decodable(room, choice[room]["name"])
    n_pairs = decoder_layers(config)
    text_layers = [build_layer(choice, d_model, causal=True) for _ in range(n_pairs)]
    memory_layers = [build_layer(choice, d_model, causal=True) for _ in range(n_pairs)]
    norm = build("norm", config["norm"], d_model=d_model)
    return TextDecoder(embedding, text_layers, memory_layers, norm, d_model, vocab_size)


def _require_decodable(room: str, name: str) -> None:
    part = get(room, name)
    exempt: Mapping[str, str] = part.exempt if isinstance(part, HasExemptions) else {}
    for contract in DECODER_CONTRACTS:
        if contract in exempt:
            raise UserError(
                f"{room}={name} cannot be used in a decoder: it is exempt from {contract} "
                f"({exempt[contract]})"
            )
