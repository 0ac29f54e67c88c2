"""What momentum rules share, and the four handlers of FAM as tables."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from famx import registry
from famx.notation import Kind, TensorInfo


class Momentum(nn.Module):
    """Chooses a momentum coefficient for every tensor: `(gradients, step) -> (tensors,)`, each in [0, 1).

    Its state are buffers, which a call replaces and never writes into: whoever calls can put the former ones back.

    The step is counted from 1; it is a 0-d tensor where CUDA graphs are to be captured (`famx.optim.base.Optimizer`).

    Args:
        tensors: what the gradients will be of, in their order.

    Attributes:
        rows: places of the tensors that it follows; the others keep their base momentum.
        capturable: False where it needs the host in every step.
    """

    observed = False
    capturable = True

    def __init__(self, tensors: Sequence[TensorInfo]):
        super().__init__()
        for info in tensors:
            if not 0 <= info.base < 1:
                raise ValueError(
                    f"base={info.base} of a tensor of shape {info.shape} is not in [0, 1)"
                )
        self.tensors = list(tensors)
        self.rows = list(range(len(tensors)))
        self.metrics: dict[str, Tensor] = {}
        self.register_buffer(
            "base", torch.tensor([info.base for info in tensors]), persistent=False
        )


class HistoryRule(Momentum):
    """Chooses by h <- beta·h + (1 - beta)·statistics per step, the first ones copied, as `choose(history)` says.

    Args:
        tensors: what the gradients will be of, in their order.
        beta: decay of the history per step.
        start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be followed; the base momentum stays for the others.
    """

    def __init__(
        self, tensors: Sequence[TensorInfo], *, beta: float, start_step: int, min_size: int
    ):
        super().__init__(tensors)
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta} is not in [0, 1)")
        self.beta, self.start_step = beta, start_step
        self.rows = [i for i, info in enumerate(tensors) if info.numel > min_size]
        self.register_buffer("index", torch.tensor(self.rows, dtype=torch.long), persistent=False)
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("coefficients", self.base.clone())

    def take(
        self, due: bool | Bool[Tensor, ""], statistics: Float[Tensor, "..."], every: int
    ) -> None:
        """Moves the history by the statistics of `every` steps, and chooses anew; nothing where it is not `due`."""
        smoothed = torch.where(
            self.begun, self.history.lerp(statistics, 1 - self.beta**every), statistics
        )
        chosen = self.base.index_copy(0, self.index, self.choose(smoothed))
        if isinstance(due, Tensor):
            smoothed = torch.where(due, smoothed, self.history)
            chosen = torch.where(due, chosen, self.coefficients)
        self.history, self.begun, self.coefficients = smoothed, self.begun | due, chosen

    def choose(self, history: Float[Tensor, "..."]) -> Float[Tensor, " followed"]:
        """The coefficient of each followed tensor."""
        raise NotImplementedError


# quarters of the bands, share of the power above which they count, rise of the momentum, its cap; asked in this order
REGIONS: dict[Kind, list[tuple[int, int, float, float, float]]] = {
    "other": [(2, 4, 0.3, 0.05, 0.95)],
    "norm": [(2, 4, 0.3, 0.05, 0.95)],
    "conv": [(1, 3, 0.4, 0.07, 0.97), (3, 4, 0.3, 0.05, 0.95)],
    "embedding": [(3, 4, 0.2, 0.08, 0.98)],
    "attention": [],
}


class FamRules(HistoryRule):
    """FAM's four handlers: h_b <- beta·h_b + (1 - beta)·p_b, then a rule for the kind of the tensor, on h.

    conv, embedding, others: the first of `REGIONS` with power enough gives `raised(a, rise, cap)`.
    attention: a largest band below the first quarter gives `lowered(a)`, one above the third raised(a, .08, .98).
    A subclass says what "enough" is (`over`), when a band is the largest (`largest`), and what caps do to a base.

    Args:
        tensors: what the gradients will be of, in their order.
        spectrum: factory of what measures them.
        beta: decay of the history per step.
        start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be measured; the base momentum stays for the others.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        spectrum: Callable[..., nn.Module],
        *,
        beta: float,
        start_step: int,
        min_size: int,
    ):
        super().__init__(tensors, beta=beta, start_step=start_step, min_size=min_size)
        measured = [tensors[i] for i in self.rows]
        self.spectrum = spectrum(tensors=measured)
        most = max((info.n_bands for info in measured), default=0)
        n_bands = torch.tensor([info.n_bands for info in measured], dtype=torch.long)
        base = self.base[self.rows]
        regions = torch.zeros(2, len(measured), most)
        thresholds = torch.full((2, len(measured)), torch.inf)
        risen = base.expand(2, -1).clone()
        for row, info in enumerate(measured):
            for i, (start, stop, threshold, rise, cap) in enumerate(REGIONS[info.kind]):
                regions[i, row, start * info.n_bands // 4 : stop * info.n_bands // 4] = 1.0
                thresholds[i, row], risen[i, row] = threshold, self.raised(info.base, rise, cap)
        tables = {
            "regions": regions,
            "thresholds": thresholds,
            "risen": risen,
            "by_largest": torch.tensor(
                [info.kind == "attention" for info in measured], dtype=torch.bool
            ),
            "first_quarter": n_bands // 4,
            "third_quarter": 3 * n_bands // 4,
            "low": torch.tensor([self.lowered(info.base) for info in measured]),
            "high": torch.tensor([self.raised(info.base, 0.08, 0.98) for info in measured]),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.register_buffer("history", torch.zeros(len(measured), most))

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        if not self.rows:
            return self.base
        shares = self.spectrum([gradients[i] for i in self.rows])
        if (due := self.spectrum.fresh & (step > self.start_step)) is not False:
            self.take(due, shares, self.spectrum.every)
        if self.observed:
            self.metrics = self.seen()
        return self.coefficients

    def choose(self, history: Float[Tensor, "measured bands"]) -> Float[Tensor, " measured"]:
        first, second = self.over(self.regions * history)
        chosen = torch.where(second, self.risen[1], self.base[self.index])
        chosen = torch.where(first, self.risen[0], chosen)
        band, exists = self.largest(history)
        decided = self.by_largest & exists
        chosen = torch.where(decided & (band < self.first_quarter), self.low, chosen)
        return torch.where(decided & (band > self.third_quarter), self.high, chosen)

    def over(self, power: Float[Tensor, "2 measured bands"]) -> Bool[Tensor, "2 measured"]:
        """Whether the regions' power, zero elsewhere, is enough."""
        raise NotImplementedError

    def largest(
        self, history: Float[Tensor, "measured bands"]
    ) -> tuple[Int[Tensor, "..."], Bool[Tensor, "..."]]:
        """The largest band of each tensor, and whether there is one."""
        raise NotImplementedError

    def raised(self, base: float, rise: float, cap: float) -> float:
        """The base momentum, raised."""
        return min(cap, base + rise)

    def lowered(self, base: float) -> float:
        """The base momentum, lowered."""
        return max(0.85, base - 0.05)

    def seen(self) -> dict[str, Tensor]:
        """The bands of all tensors in units of white noise, their means per kind, the share of tensors that moved."""
        relative = self.spectrum.relative(self.history)
        bands = relative.new_zeros(len(self.tensors), relative.shape[1]).index_copy(
            0, self.index, relative
        )
        moved = (self.coefficients != self.base)[self.index].float().mean()
        kinds: dict[Kind, list[int]] = {}
        for i in self.rows:
            kinds.setdefault(self.tensors[i].kind, []).append(i)
        means = {f"bands/{kind}": bands[rows].mean(0) for kind, rows in kinds.items()}
        return {"bands": bands, "fired": moved, **means}


class TemporalRule(HistoryRule):
    """Chooses by statistics of the last gradients in time, of the coordinates that spectrum `temporal` follows.

    h <- beta·h + (1 - beta)·statistics per step, the first ones copied; a subclass says what they are and what they
    mean: `measure(series)`, `choose(history)`.

    Args:
        tensors: what the gradients will be of, in their order.
        n_statistics: of each tensor.
        beta: decay of the history per step.
        start_step: step up to which the base momentum stays.
        min_size: entries a tensor must have more of to be followed; the base momentum stays for the others.
    """

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        *,
        n_statistics: int,
        beta: float,
        start_step: int,
        min_size: int,
    ):
        super().__init__(tensors, beta=beta, start_step=start_step, min_size=min_size)
        self.followed = registry.build(
            "spectrum", {"name": "temporal"}, tensors=[tensors[i] for i in self.rows]
        )
        self.register_buffer("history", torch.zeros(n_statistics, len(self.rows)))

    def forward(self, gradients: Sequence[Tensor], step: int | Tensor) -> Float[Tensor, " tensors"]:
        if not self.rows:
            return self.base
        self.followed([gradients[i] for i in self.rows])
        if (due := self.followed.fresh & (step > self.start_step)) is not False:
            series = self.followed.ring.float()
            # each coordinate counts alike, however large its gradient
            statistics = self.measure(
                series / series.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny)
            )
            self.take(due, statistics, self.followed.every)
        if self.observed:
            self.metrics = {"moved": (self.coefficients != self.base)[self.index].float().mean()}
        return self.coefficients

    def measure(
        self, series: Float[Tensor, "window followed coordinates"]
    ) -> Float[Tensor, "statistics followed"]:
        """The statistics of the window."""
        raise NotImplementedError
