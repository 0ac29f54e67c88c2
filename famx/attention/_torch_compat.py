"""Attention blocks behind the interface of `torch.nn.MultiheadAttention`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx.attention.base import Block
from famx.nn.hooks import connect_layers
from famx.nn.state import DecodeState

HIDDEN_BELOW = -1e4  # entries of a float mask up to this one hide a position, as -inf does


class TorchMultiheadAttention(nn.Module):
    """A block with the interface of `nn.MultiheadAttention`; it has no further parameters."""

    # torch's layers read these, and then do not use their fused kernel
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(self, block: Block, batch_first: bool):
        super().__init__()
        self.block = block
        self.num_heads = block.n_heads
        self.batch_first = batch_first
        # messages of one pass through a stack of layers, see `connect_torch_layers`
        self.state: DecodeState | None = None

    def forward(
        self,
        query: Float[Tensor, "*_ d"],
        key: Float[Tensor, "*_ d"],
        value: Float[Tensor, "*_ d"],
        key_padding_mask: Bool[Tensor, "*b s"] | Float[Tensor, "*b s"] | None = None,
        need_weights: bool = True,
        attn_mask: Bool[Tensor, "*heads t s"] | Float[Tensor, "*heads t s"] | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "*_ d"], None]:
        """Returns the block's output, and None for the weights, which blocks may not have.

        If the key is the same object as the query, this is self-attention; otherwise the key is a
        memory. Inputs of two axes are one sequence, (time, width).

        Args:
            key_padding_mask: (b, s), True where nothing may be attended to (the opposite of famx's
                masks), or in a float mask -inf or at most -1e4.
            attn_mask: (t, s) or (b * heads, t, s), likewise.
            is_causal: states that `attn_mask`, which must be passed too, is causal.

        Raises:
            ValueError: value is not key, a mask has another shape, a float mask has entries
                between -1e4 and 0 or above 0, or the block exchanges messages between layers but
                its stack is not connected.
        """
        if self.block.connects_layers and self.state is None:
            raise ValueError(
                f"{type(self.block).__name__} exchanges messages between layers: "
                "call famx.attention.connect_torch_layers(stack) once for the stack of layers"
            )
        if value is not key:
            raise ValueError(
                "value is not key: keys and values come from one tensor, pass it as both"
            )
        if is_causal and attn_mask is None:
            raise ValueError(
                "is_causal=True needs an attn_mask; or build the block with causal=True instead"
            )

        # inputs as (b t d)
        unbatched = query.ndim == 2
        batch_axis = 0 if self.batch_first else 1
        x = query[None] if unbatched else query.transpose(0, batch_axis)
        memory = key[None] if unbatched else key.transpose(0, batch_axis)
        mask = self._mask(key_padding_mask, attn_mask, x, memory, unbatched)
        y = self.block(x, None if query is key else memory, mask, self.state)
        return y[0] if unbatched else y.transpose(0, batch_axis), None

    def _mask(
        self,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"],
        unbatched: bool,
    ) -> Bool[Tensor, "#b #h #t s"] | None:
        """Returns both masks as one: True where a query may attend."""
        batch, t, _ = x.shape
        s = memory.shape[1]
        mask = None
        if key_padding_mask is not None:
            shape = (s,) if unbatched else (batch, s)
            mask = _inverted("key_padding_mask", key_padding_mask, [shape]).view(batch, 1, 1, s)
        if attn_mask is not None:
            shapes = [(t, s), (batch * self.num_heads, t, s)]
            pairs = _inverted("attn_mask", attn_mask, shapes)
            pairs = pairs[None, None] if pairs.ndim == 2 else pairs.unflatten(0, (batch, -1))
            mask = pairs if mask is None else pairs & mask
        return mask


def as_torch_mha(block: nn.Module, batch_first: bool = True) -> TorchMultiheadAttention:
    """Wraps an attention block so that it can replace `nn.MultiheadAttention` in torch's layers.

    Whether it is causal was decided when the block was built; an `attn_mask` may hide more. If the
    block has a `penalty`, the training loop must add it to the loss. The layers of a block that
    exchanges messages need `connect_torch_layers`.

    Args:
        batch_first: whether inputs are (batch, time, width), or (time, batch, width), which is
            torch's default. Must be the same as in the surrounding layer.

    Raises:
        TypeError: `block` is not an attention block.
    """
    if not isinstance(block, Block):
        raise TypeError(
            f"{type(block).__name__} is not an attention block: "
            "it must be a subclass of famx.attention.base.Block"
        )
    return TorchMultiheadAttention(block, batch_first)


def connect_torch_layers(module: nn.Module) -> nn.Module:
    """Connects the wrapped blocks of a stack of torch's layers; returns the module itself.

    In each pass through the stack, blocks of later layers get the messages of earlier ones. Call it
    once for the finished model, before its optimizer is built: parameters that only the first layer
    uses are removed from the others.

    Args:
        module: a model with `nn.TransformerEncoder`s or `nn.TransformerDecoder`s, each of which is
            a stack; without any, the module itself is the stack.
    """
    kinds = (nn.TransformerEncoder, nn.TransformerDecoder)
    stacks: list[nn.Module] = [part for part in module.modules() if isinstance(part, kinds)]
    for stack in stacks or [module]:
        if connect_layers(stack):
            stack.register_forward_pre_hook(_begin_pass)
            stack.register_forward_hook(_end_pass, always_call=True)
    return module


def _begin_pass(stack: nn.Module, inputs: object) -> None:
    _set_state(stack, DecodeState(incremental=False))


def _end_pass(stack: nn.Module, inputs: object, output: object) -> None:
    _set_state(stack, None)


def _set_state(stack: nn.Module, state: DecodeState | None) -> None:
    for module in stack.modules():
        if isinstance(module, TorchMultiheadAttention):
            module.state = state


def _inverted(name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> Bool[Tensor, "..."]:
    """Converts a mask of torch to the convention of famx: True where a query may attend."""
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {expected}")
    if mask.dtype == torch.bool:
        return ~mask
    if not ((mask == 0) | (mask <= HIDDEN_BELOW)).all():
        raise ValueError(
            f"{name} has entries other than 0 and -inf (or numbers up to {HIDDEN_BELOW:.0f}): "
            "a block can only hide positions"
        )
    return mask == 0
