"""Any block in place of `torch.nn.MultiheadAttention`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TorchMHA(nn.Module):
    """A block behind the call of `nn.MultiheadAttention`, to which it adds nothing of its own.

    Causality is the block's own, from its building; an `attn_mask` may hide more. A block's `penalty`, where it has
    one, is for whoever trains it to add to the loss.
    """

    # by this, torch's layers know that they cannot run this module's weights in a kernel of their own
    _qkv_same_embed_dim, in_proj_bias = False, None

    def __init__(self, block: nn.Module, batch_first: bool = True):
        super().__init__()
        if not hasattr(block, "n_heads"):
            raise TypeError(f"a {type(block).__name__} without n_heads is no attention block")
        self.block, self.num_heads, self.batch_first = block, block.n_heads, batch_first

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
        """The block's output, and None for the weights, which blocks need not have.

        A query that is the key, the same object, is self-attention; else the key is a memory, which all may see. What
        has two axes is one sequence, (time, width).

        Args:
            key_padding_mask, attn_mask: True, or -inf in a mask of floats, where nothing may be attended to (the
                opposite of famx's own masks); `attn_mask` is of (t, s) or (b * heads, t, s).
            is_causal: tells that `attn_mask` is causal, which has to be given all the same.

        Raises:
            ValueError: the values are not the keys, a mask has another shape, or one of floats holds something else
                than 0 and -inf.
        """
        if value is not key:
            raise ValueError(
                "value is not key: a block makes its keys and values of one memory, pass it as both"
            )
        if is_causal and attn_mask is None:
            raise ValueError(
                "is_causal=True needs attn_mask, which is None: build the block with causal=True instead"
            )
        alone, axis = query.ndim == 2, 0 if self.batch_first else 1
        x, memory = (each[None] if alone else each.transpose(0, axis) for each in (query, key))
        (batch, t, _), s = x.shape, memory.shape[1]
        mask = None
        if key_padding_mask is not None:
            shape = (s,) if alone else (batch, s)
            mask = _seen("key_padding_mask", key_padding_mask, [shape]).view(batch, 1, 1, s)
        if attn_mask is not None:
            seen = _seen("attn_mask", attn_mask, [(t, s), (batch * self.num_heads, t, s)])
            seen = seen[None, None] if seen.ndim == 2 else seen.unflatten(0, (batch, -1))
            mask = seen if mask is None else seen & mask
        y = self.block(x, None if query is key else memory, mask)
        return y[0] if alone else y.transpose(0, axis), None


def as_torch_mha(block: nn.Module, batch_first: bool = True) -> TorchMHA:
    """`block`, a part of this room, to be called as `nn.MultiheadAttention` is.

    Args:
        batch_first: whether inputs are (batch, time, width), as blocks take them, or (time, batch, width), which is the
            usual way of torch and of its layers: both have to be told the same.
    """
    return TorchMHA(block, batch_first)


def _seen(name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> Bool[Tensor, "..."]:
    if tuple(mask.shape) not in shapes:
        raise ValueError(
            f"{name} is of {tuple(mask.shape)}, it has to be of {' or '.join(map(str, shapes))}"
        )
    if mask.dtype == torch.bool:
        return ~mask
    if not ((mask == 0) | mask.isneginf()).all():
        raise ValueError(
            "a mask of floats holds something else than 0 and -inf: a block can hide, not weigh, places"
        )
    return mask == 0
