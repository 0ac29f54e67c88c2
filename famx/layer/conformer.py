"""Attention and convolution between two half feedforwards (Conformer, arXiv:2005.08100)."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import glu, pad, silu

from famx.layer.base import Dropout, Layer
from famx.nn.state import DecodeState, append_to_cache
from famx.registry import register


class Convolution(nn.Module):
    """`W_out silu(norm(conv(glu(W_in x))))`, a convolution of each channel over time.

    If causal, its kernel spans a position and those before it, otherwise it is centred.
    """

    def __init__(self, d_model: int, norm: Callable[[], nn.Module], causal: bool, kernel_size: int):
        super().__init__()
        self.before = kernel_size - 1 if causal else kernel_size // 2
        self.after = kernel_size - 1 - self.before
        self.into = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.channelwise = nn.Conv1d(d_model, d_model, kernel_size, groups=d_model)
        # the paper's batch norm would make a sample depend on the other samples of its batch
        self.norm = norm()

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "#b #t s"] | None,
        state: DecodeState | None,
    ) -> Float[Tensor, "b t d"]:
        """Convolves over time.

        Args:
            mask: True where a position sees a position of the sequence so far; None for all.
            state: caches the last positions of earlier chunks.
        """
        # gated linear unit
        x = glu(self.into(x), dim=-1)
        chunk_len = x.shape[1]

        # the chunk, preceded by the cached positions that its first outputs need
        cache = {} if state is None else state.cache(self)
        append_to_cache(cache, inputs=x)
        x = cache["inputs"]
        cache["inputs"] = x[:, max(0, x.shape[1] - self.before) :]
        # margins of zeros, where the kernel reaches beyond the ends of the sequence
        margins = (self.before + chunk_len - x.shape[1], self.after)
        if mask is not None:
            mask = mask[..., mask.shape[-1] - x.shape[1] :]

        if mask is None or mask.shape[1] == 1:
            # padding is set to zero, like the margins
            if mask is not None:
                x = x * mask.mT
            y = self.channelwise(pad(x.mT, margins)).mT
        else:
            y = self.convolve_pairs(pad(x.mT, margins), pad(mask, margins))
        return self.out(silu(self.norm(y)))

    def convolve_pairs(
        self, x: Float[Tensor, "b d s"], mask: Bool[Tensor, "#b t s"]
    ) -> Float[Tensor, "b t d"]:
        """Convolves packed sequences, in which each position sees different positions.

        It takes `kernel_size` times as much memory.
        """
        (size,) = self.channelwise.kernel_size
        # mask of the positions under the kernel of each position
        taps = mask.unfold(-1, size, 1).diagonal(dim1=1, dim2=2).mT[:, None]
        products = (x.unfold(-1, size, 1) * taps) * self.channelwise.weight
        bias = self.channelwise.bias
        assert bias is not None
        return products.sum(-1).mT + bias


@register
class ConformerLayer(Layer):
    """`x <- x + f1(norm x) / 2`, attention, convolution, then `x <- x + f2(norm x) / 2`.

    Attention is `x <- x + attention(norm x)`, convolution likewise. The convolution obeys the mask
    as attention does. With a memory, the mask is that of the memory, so padding of `x` is unknown.

    The paper ends each layer with a norm of x. In each layer, that makes the differences between
    the frames smaller, and CTC may then emit nothing but blanks for a thousand steps or more.

    Args:
        d_model: number of channels.
        attention, feedforward, norm: factories, each of which builds one module.
        causal: whether the convolution sees no later positions.
        dropout: dropout on the output of each branch, in [0, 1).
        kernel_size: number of positions that the convolution spans; odd.
        last_norm: whether a layer ends with a norm, as in the paper.
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
        last_norm: bool = False,
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size} must be odd: a position and as many before it as after"
            )
        # modules in the order of the forward pass
        self.first_norm = norm()
        self.first_feedforward = feedforward()
        self.attention_norm = norm()
        self.attention = attention()
        self.convolution_norm = norm()
        self.convolution = Convolution(d_model, norm, causal, kernel_size)
        self.second_norm = norm()
        self.second_feedforward = feedforward()
        self.last_norm = norm() if last_norm else nn.Identity()
        self.dropout = Dropout(dropout)

    def forward(self, x, memory=None, mask=None, state=None):
        """See `Layer.forward`."""
        # with a memory, the mask is that of the memory
        mask_of_x = None if mask is None or memory is not None else mask.any(1)
        x = x + 0.5 * self.dropout(self.first_feedforward(self.first_norm(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), memory, mask, state))
        x = x + self.dropout(self.convolution(self.convolution_norm(x), mask_of_x, state))
        x = x + 0.5 * self.dropout(self.second_feedforward(self.second_norm(x)))
        return self.last_norm(x)
