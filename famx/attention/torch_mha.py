"""Any block in place of `torch.nn.MultiheadAttention`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TorchMHA(nn.Module):
    """A block behind the call of `nn.MultiheadAttention(batch_first=True)`, to which it adds nothing of its own.

    Causality is the block's own, from its building; an `attn_mask` may hide more.
    """

    batch_first = True
    # by this, torch's layers know that they cannot run this module's weights in a kernel of their own
    _qkv_same_embed_dim, in_proj_bias = False, None

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.num_heads = block, block.n_heads

    def forward(
        self,
        query: Float[Tensor, "b t d"],
        key: Float[Tensor, "b s d"],
        value: Float[Tensor, "b s d"],
        key_padding_mask: Bool[Tensor, "b s"] | Float[Tensor, "b s"] | None = None,
        need_weights: bool = True,
        attn_mask: Bool[Tensor, "*heads t s"] | Float[Tensor, "*heads t s"] | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "b t d"], None]:
        """The block's output, and None for the weights, which blocks need not have.

        A query that is the key is self-attention, else the key is the memory.

        Args:
            key_padding_mask, attn_mask: True, or -inf in a mask of floats, where nothing may be attended to (the
                opposite of famx's own masks); `attn_mask` is of (t, s) or (b * heads, t, s).
            is_causal: tells that `attn_mask` is causal, which has to be given all the same.

        Raises:
            ValueError: the values are not the keys, or a mask of floats holds something else than 0 and -inf.
        """
        if value is not key:
            raise ValueError("value is not key: a block makes its keys and values of one memory, pass it as both")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True needs attn_mask, which is None: build the block with causal=True instead")
        mask = None if key_padding_mask is None else _seen(key_padding_mask)[:, None, None]
        if attn_mask is not None:
            seen = _seen(attn_mask)
            seen = seen[None, None] if seen.ndim == 2 else seen.unflatten(0, (query.shape[0], -1))
            mask = seen if mask is None else seen & mask
        return self.block(query, None if query is key else key, mask), None


def as_torch_mha(block: nn.Module) -> TorchMHA:
    """`block`, a part of this room, to be called as a batch-first `nn.MultiheadAttention` is."""
    return TorchMHA(block)


def _seen(mask: Tensor) -> Bool[Tensor, "..."]:
    if mask.dtype == torch.bool:
        return ~mask
    if not ((mask == 0) | mask.isneginf()).all():
        raise ValueError("a mask of floats holds something else than 0 and -inf: a block can hide, not weigh, places")
    return mask == 0
