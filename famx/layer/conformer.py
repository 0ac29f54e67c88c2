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

    Causal, it spans a position and those before it; else as many on either side.
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
            mask: which positions of the sequence up to now each position sees; None for all.
            state: caches the last positions of earlier chunks.
        """
        x = glu(self.into(x), dim=-1)
        chunk_len = x.shape[1]

        # the chunk after the positions that its first output needs
        cache = {} if state is None else state.cache(self)
        append_to_cache(cache, inputs=x)
        x = cache["inputs"]
        cache["inputs"] = x[:, max(0, x.shape[1] - self.before) :]
        # zeros where the kernel reaches beyond the ends of the sequence
        margins = (self.before + chunk_len - x.shape[1], self.after)
        if mask is not None:
            mask = mask[..., mask.shape[-1] - x.shape[1] :]

        if mask is None or mask.shape[1] == 1:
            # padding is zero, like what lies beyond the ends of the sequence
            if mask is not None:
                x = x * mask.mT
            y = self.channelwise(pad(x.mT, margins)).mT
        else:
            y = self.convolve_pairs(pad(x.mT, margins), pad(mask, margins))
        return self.out(silu(self.norm(y)))

    def convolve_pairs(
        self, x: Float[Tensor, "b d s"], mask: Bool[Tensor, "#b t s"]
    ) -> Float[Tensor, "b t d"]:
        """Convolves packed sequences, where positions see different ones.

        It takes `kernel_size` times the memory.
        """
        (size,) = self.channelwise.kernel_size
        # which of the positions under its kernel each position sees
        taps = mask.unfold(-1, size, 1).diagonal(dim1=1, dim2=2).mT[:, None]
        products = (x.unfold(-1, size, 1) * taps) * self.channelwise.weight
        bias = self.channelwise.bias
        assert bias is not None
        return products.sum(-1).mT + bias


@register
class ConformerLayer(Layer):
    """`x <- x + f1(norm x) / 2`, attention, convolution, then `x <- norm(x + f2(norm x) / 2)`.

    Attention is `x <- x + attention(norm x)`, convolution likewise. The convolution obeys the mask
    as attention does. With a memory the mask is that of the memory, and does not tell which
    positions of `x` are padding.

    Args:
        d_model: channels.
        attention, feedforward, norm: each builds one module.
        causal: the convolution sees no later positions.
        dropout: on the output of each branch, in [0, 1).
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
                f"kernel_size={kernel_size} must be odd: a position and as many before it as after"
            )
        self.first_norm = norm()
        self.first_feedforward = feedforward()
        self.attention_norm = norm()
        self.attention = attention()
        self.convolution_norm = norm()
        self.convolution = Convolution(d_model, norm, causal, kernel_size)
        self.second_norm = norm()
        self.second_feedforward = feedforward()
        self.last_norm = norm()
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
