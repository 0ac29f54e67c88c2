"""Contracts of layers: most of those of attention blocks, and that a stack of two layers learns."""

from functools import partial, wraps

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from famx.contracts import (
    Contract,
    attention,
    build_for_test,
    require,
    require_finite,
    without_shape_hook,
)
from famx.contracts._blocks import B, BlockBuilder, BlockContract, D, H, T, build_rotary
from famx.layer.base import Layer
from famx.nn.state import DecodeState
from famx.registry import build

# size of the vocabulary of the sequences to copy, and the positions by which they are copied
TOKENS = 8
DELAY = 2


def on_layer(contract: BlockContract) -> Contract:
    """Returns a contract of attention blocks as a contract of layers."""

    @wraps(contract)
    def check(part: type[Layer]) -> None:
        contract(as_block(part))

    return check


def as_block(part: type[Layer]) -> BlockBuilder:
    """Returns a layer that is built with the context of an attention block."""

    def build_layer(d_model: int, n_heads: int, rotary: nn.Module, causal: bool) -> nn.Module:
        sizes = {"d_model": d_model, "n_heads": n_heads, "rotary": rotary, "causal": causal}
        # factories of the most common parts, as the model passes those of a config
        return build_for_test(
            part,
            d_model=d_model,
            causal=causal,
            attention=partial(build, "attention", {"name": "multihead"}, **sizes),
            feedforward=partial(build, "feedforward", {"name": "gelu"}, d_model=d_model),
            norm=partial(build, "norm", {"name": "layernorm"}, d_model=d_model),
        )

    return build_layer


def build_two_layers(part: type[Layer]) -> nn.ModuleList:
    """Builds two causal layers with weights of their own."""
    return nn.ModuleList(as_block(part)(D, H, build_rotary(), causal=True) for _ in range(2))


def stack_shares_a_state(part: type[Layer]) -> None:
    """Two layers decode with one state, each with a cache of its own."""
    layers = build_two_layers(part).eval()
    x = torch.randn(B, T, D)

    def run(y: Tensor, state: DecodeState | None = None) -> Tensor:
        for layer in layers:
            y = layer(y, state=state)
        return y

    # position by position with one state, and all at once without
    state = DecodeState()
    decoded = torch.cat([run(x[:, t : t + 1], state) for t in range(T)], 1)
    decoded, expected = require_finite(decoded, run(x))
    require(
        torch.allclose(decoded, expected, atol=1e-4),
        "two layers that decode with one state disturb each other",
    )


def learns_to_copy(part: type[Layer]) -> None:
    """Two causal layers learn to repeat the token of two positions earlier."""
    loss = train_to_copy(build_two_layers(part), steps=150)
    # chance is log(8) = 2.08; the loss of attention that copies approaches 0
    require(
        loss < 0.7,
        f"two layers do not learn to copy: cross-entropy {loss:.2f} after 150 steps, "
        "2.08 by guessing",
    )


def train_to_copy(layers: nn.ModuleList, steps: int) -> float:
    """Trains a model of causal layers to repeat the token of two positions earlier.

    Returns:
        The cross-entropy after the training, in nats.
    """
    # a language model, whose target is its own input of two positions earlier
    embed = nn.Embedding(TOKENS, D)
    score = nn.Linear(D, TOKENS)
    model = nn.ModuleList([layers, embed, score])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def loss_of(tokens: Tensor) -> Tensor:
        y = embed(tokens)
        for layer in layers:
            y = layer(y)
        return cross_entropy(score(y)[:, DELAY:].flatten(0, 1), tokens[:, :-DELAY].flatten())

    # new sequences in every step, so that only the rule can be learned
    with without_shape_hook():
        for _ in range(steps):
            loss = loss_of(torch.randint(TOKENS, (16, 12)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss_of(torch.randint(TOKENS, (64, 12))).item()


CONTRACT: tuple[Contract, ...] = (
    *(on_layer(contract) for contract in attention.SHARED),
    stack_shares_a_state,
    learns_to_copy,
)
ESSENTIAL: tuple[Contract, ...] = tuple(
    on_layer(contract) for contract in attention.SHARED if contract in attention.ESSENTIAL
)
