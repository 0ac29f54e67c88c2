"""A convolution beside attention, between two half feedforwards (Conformer, Gulati et al. 2020, arXiv:2005.08100)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import glu, pad, silu

from famx.layer.base import Dropout
from famx.registry import register


class Convolution(nn.Module):
    """`W_out silu(norm(conv(glu(W_in x))))`, a convolution of each channel over time.

    Causal, a position sees itself and those before; else as many on either side.
    """

    def __init__(self, d_model: int, norm: Callable[[], nn.Module], causal: bool, kernel_size: int):
        super().__init__()
        self.before = kernel_size - 1 if causal else kernel_size // 2
        self.after = kernel_size - 1 - self.before
        self.into, self.out = nn.Linear(d_model, 2 * d_model), nn.Linear(d_model, d_model)
        self.channelwise = nn.Conv1d(d_model, d_model, kernel_size, groups=d_model)
        # the paper's batch norm would let a sample see its batch-mates
        self.norm = norm()

    def forward(
        self, x: Float[Tensor, "b t d"], seen: Bool[Tensor, "#b #t s"] | None, state: dict | None
    ) -> Float[Tensor, "b t d"]:
        """
        Args:
            seen: which of the sequence so far a position may see; None for all.
            state: as a layer's, keeps the last positions of the chunks before.
        """
        x, t = glu(self.into(x), dim=-1), x.shape[1]
        if state is not None and "whole" not in state:
            x = torch.cat((state[self], x), 1) if self in state else x
            state[self] = x[:, max(0, x.shape[1] - self.before) :]
        margins = (self.before + t - x.shape[1], self.after)
        if seen is not None:
            seen = seen[..., seen.shape[-1] - x.shape[1] :]
        if seen is None or seen.shape[1] == 1:
            # what no position may see is zero, so padding is as the nothing after a sequence's end
            x = x if seen is None else x * seen.mT
            y = self.channelwise(pad(x.mT, margins)).mT
        else:
            y = self.pairwise(pad(x.mT, margins), pad(seen, margins))
        return self.out(silu(self.norm(y)))

    def pairwise(
        self, x: Float[Tensor, "b d s"], seen: Bool[Tensor, "#b t s"]
    ) -> Float[Tensor, "b t d"]:
        """The convolution where each position sees others (packed sequences), `kernel_size` times the memory."""
        (size,) = self.channelwise.kernel_size
        taps = seen.unfold(-1, size, 1).diagonal(dim1=1, dim2=2).mT[:, None]
        return ((x.unfold(-1, size, 1) * taps) * self.channelwise.weight).sum(
            -1
        ).mT + self.channelwise.bias


@register
class ConformerLayer(nn.Module):
    """`x <- x + f1(norm x)/2`, `x + attention(norm x)`, `x + convolution(norm x)`, `norm(x + f2(norm x)/2)`.

    The convolution obeys the mask as attention does. With a memory the mask is the memory's, and nothing tells of
    padding in `x`.

    Args:
        d_model: channels.
        attention, feedforward, norm: each builds one module.
        causal: the convolution looks back only.
        dropout: on what each branch adds, in [0, 1).
        kernel_size: positions that the convolution spans; odd.
    """

    def __init__(
        self,
        d_model: int,
        attention: Callable[[], nn.Module],
        feedforward: Callable[[], nn.Module],
        norm: Callable[[], nn.Module],
        causal: bool = False,
        *,
        dropout: float = 0.1,
        kernel_size: int = 15,
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size} must be odd, a position and as many before it as after"
            )
        self.first_norm, self.first = norm(), feedforward()
        self.attention_norm, self.attention = norm(), attention()
        self.convolution_norm, self.convolution = (
            norm(),
            Convolution(d_model, norm, causal, kernel_size),
        )
        self.second_norm, self.second = norm(), feedforward()
        self.last_norm, self.dropout = norm(), Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        memory: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "#b #h #t s"] | None = None,
        state: dict | None = None,
    ) -> Float[Tensor, "b t d"]:
        """See `PreNormLayer.forward`."""
        seen = None if mask is None or memory is not None else mask.any(1)
        x = x + 0.5 * self.dropout(self.first(self.first_norm(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), memory, mask, state))
        x = x + self.dropout(self.convolution(self.convolution_norm(x), seen, state))
        return self.last_norm(x + 0.5 * self.dropout(self.second(self.second_norm(x))))
