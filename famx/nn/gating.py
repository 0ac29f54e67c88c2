"""Hard gates with a gradient, and the selection of what open gates leave to compute."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

GATHER_BELOW = 0.75  # share of open gates above which a gather costs more than it saves


def straight_through(
    p: Float[Tensor, "..."], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Returns 1 where `p > threshold`, else 0, with the gradient of p (arXiv:1308.3432)."""
    return p + ((p > threshold).to(p) - p).detach()


def skips_closed(module: nn.Module, x: Tensor) -> bool:
    """Returns whether a module computes only what its open gates leave: in evaluation.

    With gradients, all is computed and multiplied by the gates, so that they learn. The number of
    open gates has to be read on the host, which neither a graph nor a tensor without data allows.
    """
    if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_meta:
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


class Selection(NamedTuple):
    """Rows with an open gate, and the positions of their open gates.

    Args:
        rows: indices of the rows.
        positions: positions of the open gates of each row, in order; rows with fewer open gates
            than others are filled up with positions of closed ones.
    """

    rows: Int[Tensor, " r"]
    positions: Int[Tensor, "r m"]

    @property
    def is_empty(self) -> bool:
        """Tells whether no gate is open."""
        return self.positions.numel() == 0

    def take(self, x: Shaped[Tensor, "b t *channels"]) -> Shaped[Tensor, "r m *channels"]:
        """Returns the selected positions of a tensor."""
        return x[self.rows[:, None], self.positions]

    def put(
        self, x: Shaped[Tensor, "b t *channels"], values: Shaped[Tensor, "r m *channels"]
    ) -> Shaped[Tensor, "b t *channels"]:
        """Returns a copy of `x` with the selected positions replaced."""
        return x.index_put((self.rows[:, None], self.positions), values.to(x))

    def take_rows(self, x: Shaped[Tensor, "b *axes"]) -> Shaped[Tensor, "r *axes"]:
        """Returns the rows that have an open gate."""
        # where all rows have one, they are in their order
        return x if len(self.rows) == len(x) else x[self.rows]

    def take_mask(self, mask: Bool[Tensor, "#b #h #t s"] | None) -> Bool[Tensor, "_ #h _ s"] | None:
        """Returns the rows of a mask, and the selected queries if it differs between queries."""
        if mask is None:
            return None
        if mask.shape[2] == 1:
            return mask if len(mask) == 1 else self.take_rows(mask)
        by_query = mask.transpose(1, 2)
        selected = by_query[0][self.positions] if len(mask) == 1 else self.take(by_query)
        return selected.transpose(1, 2)


def select_open(gates: Bool[Tensor, "b t"]) -> Selection | None:
    """Returns the open gates, or None if so many are open that all are to be computed.

    It waits once for the device.
    """
    counts = gates.sum(1)
    counts_on_host = counts.tolist()
    n_rows = sum(count > 0 for count in counts_on_host)
    n_columns = max(counts_on_host, default=0)
    if n_rows * n_columns > GATHER_BELOW * gates.numel():
        return None
    if not n_rows:
        none = torch.empty(0, dtype=torch.long, device=gates.device)
        return Selection(none, none[:, None])
    # rows with open gates first, then in each row the open gates first; stable sorts keep the order
    rows = counts.clamp(max=1).sort(descending=True, stable=True).indices[:n_rows]
    order = gates[rows].byte().sort(dim=1, descending=True, stable=True).indices
    return Selection(rows, order[:, :n_columns])


def blend(
    start: Float[Tensor, "_ _ d"], end: Float[Tensor, "_ _ d"], weight: Float[Tensor, "_ _ 1"]
) -> Float[Tensor, "_ _ d"]:
    """Returns `start + weight (end - start)`, in the widest of their dtypes."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), weight.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), weight.to(dtype))
