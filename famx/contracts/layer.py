"""What every layer promises: what an attention block does, and that a stack of two learns."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from famx.contracts import Contract, build_for_test, require, require_finite
from famx.contracts import attention as block
from famx.registry import build

D, H = block.D, block.H


def shape(part: block.Part) -> None:
    block.shape(_wired(part))


def one_position(part: block.Part) -> None:
    block.one_position(_wired(part))


def other_length(part: block.Part) -> None:
    block.other_length(_wired(part))


def mask_obeyed(part: block.Part) -> None:
    block.mask_obeyed(_wired(part))


def fully_masked(part: block.Part) -> None:
    block.fully_masked(_wired(part))


def causal(part: block.Part) -> None:
    block.causal(_wired(part))


def padding_independent(part: block.Part) -> None:
    block.padding_independent(_wired(part))


def batch_independent(part: block.Part) -> None:
    block.batch_independent(_wired(part))


def deterministic(part: block.Part) -> None:
    block.deterministic(_wired(part))


def watching_changes_nothing(part: block.Part) -> None:
    block.watching_changes_nothing(_wired(part))


def every_gradient(part: block.Part) -> None:
    block.every_gradient(_wired(part))


def half_precision(part: block.Part) -> None:
    block.half_precision(_wired(part))


def compiles(part: block.Part) -> None:
    block.compiles(_wired(part))


def large_inputs(part: block.Part) -> None:
    block.large_inputs(_wired(part))


def stack_shares_a_state(part: block.Part) -> None:
    """Two layers decode under one state, each with an entry of its own."""
    rotary, x = build("rotary", {"name": "rope"}, head_dim=D // H), torch.randn(block.B, block.T, D)
    layers = nn.ModuleList(_wired(part)(D, H, rotary, causal=True) for _ in range(2)).eval()

    def stack(x: Tensor, state: dict | None = None) -> Tensor:
        for layer in layers:
            x = layer(x, state=state)
        return x

    state: dict = {}
    steps = torch.cat([stack(x[:, t : t + 1], state) for t in range(block.T)], 1)
    require(
        torch.allclose(*require_finite(steps, stack(x)), atol=1e-4),
        "two layers decoding under one state disturb each other",
    )


def learns_to_copy(part: block.Part) -> None:
    """Two causal layers learn to repeat the token of two positions before."""
    tokens, delay = 8, 2
    layers = nn.ModuleList(
        _wired(part)(D, H, build("rotary", {"name": "rope"}, head_dim=D // H), causal=True)
        for _ in range(2)
    )
    embed, score = nn.Embedding(tokens, D), nn.Linear(D, tokens)
    optimizer = torch.optim.Adam(
        [*layers.parameters(), *embed.parameters(), *score.parameters()], 1e-2
    )

    def loss_of(x: Tensor) -> Tensor:
        y = embed(x)
        for layer in layers:
            y = layer(y)
        return cross_entropy(score(y)[:, delay:].flatten(0, 1), x[:, :-delay].flatten())

    with block._no_shape_hook():
        for _ in range(150):
            loss = loss_of(torch.randint(tokens, (16, 12)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    loss = loss_of(torch.randint(tokens, (64, 12)))
    require(
        loss < 0.7,
        f"two layers do not learn to copy: cross-entropy {loss:.2f} after 150 steps, 2.08 by guessing",
    )


def _wired(part: block.Part) -> block.Part:
    """The layer as what it is called like: a block of given sizes."""

    def wired(d_model: int, n_heads: int, rotary: nn.Module, causal: bool) -> nn.Module:
        context = {
            "d_model": d_model,
            "causal": causal,
            "attention": lambda: build(
                "attention",
                {"name": "multihead"},
                d_model=d_model,
                n_heads=n_heads,
                rotary=rotary,
                causal=causal,
            ),
            "feedforward": lambda: build("feedforward", {"name": "gelu"}, d_model=d_model),
            "norm": lambda: build("norm", {"name": "layernorm"}, d_model=d_model),
        }
        return build_for_test(part, **context)

    return wired


CONTRACT: tuple[Contract, ...] = (
    shape,
    one_position,
    other_length,
    mask_obeyed,
    fully_masked,
    causal,
    padding_independent,
    batch_independent,
    deterministic,
    watching_changes_nothing,
    every_gradient,
    half_precision,
    compiles,
    large_inputs,
    stack_shares_a_state,
    learns_to_copy,
)
