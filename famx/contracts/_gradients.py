"""Contracts of blocks and layers: every parameter gets a gradient, alone and in a stack."""

import torch
from torch import Tensor, nn

from famx.contracts import require
from famx.contracts._blocks import BlockBuilder, D, S, T, build_block
from famx.nn.hooks import HasPenalty, connect_layers, drop_self_attention
from famx.nn.state import DecodeState


def every_gradient(part: BlockBuilder) -> None:
    """Every parameter gets a finite gradient in training."""
    for causal in (False, True):
        block = build_block(part, causal).train()
        _compute_gradients(block, block(torch.randn(4, T, D)).square().mean())
        dead = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
        _require_none(dead)
        for name, p in block.named_parameters():
            require(
                p.grad is not None and p.grad.isfinite().all(),
                f"the gradient of parameter {name} is not finite",
            )


def every_gradient_in_a_stack(part: BlockBuilder) -> None:
    """Every parameter of two layers gets a gradient, if only 0, as several processes require."""
    for causal in (False, True):
        stack = nn.ModuleList(build_block(part, causal) for _ in range(2)).train()
        # as the model connects its layers
        state = DecodeState(incremental=False) if connect_layers(stack) else None
        x = torch.randn(4, T, D)
        for block in stack:
            x = x + block(x, state=state)
        _compute_gradients(stack, x.square().mean())
        _require_none([name for name, p in stack.named_parameters() if p.grad is None])


def every_gradient_of_a_decoder(part: BlockBuilder) -> None:
    """Every parameter of two layers that always attend to a memory gets a gradient, if only 0."""
    stack = nn.ModuleList(build_block(part, causal=True) for _ in range(2)).train()
    # as the model prepares the layers of its decoder
    drop_self_attention(stack)
    state = DecodeState(incremental=False) if connect_layers(stack) else None
    x = torch.randn(4, T, D)
    memory = torch.randn(4, S, D)
    for block in stack:
        x = x + block(x, memory, state=state)
    _compute_gradients(stack, x.square().mean())
    _require_none([name for name, p in stack.named_parameters() if p.grad is None])


def _compute_gradients(module: nn.Module, loss: Tensor) -> None:
    # the loss as in training: with the penalties by which gates and spans learn
    for part in module.modules():
        penalty = part.penalty() if isinstance(part, HasPenalty) else None
        if penalty is not None:
            loss = loss + penalty
    loss.backward()


def _require_none(dead: list[str]) -> None:
    """Names all parameters without a gradient in one message."""
    subject = f"parameters {', '.join(dead)} get"
    if len(dead) == 1:
        subject = f"parameter {dead[0]} gets"
    require(not dead, f"{subject} no gradient")
