"""Records what an optimizer does to each tensor, in a training loop of one's own."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from famx.monitoring.metrics import to_host
from famx.monitoring.optimizer_probe import OptimizerProbe, ProbeLevel
from famx.monitoring.spectrum_log import SpectrumLog
from famx.nn.hooks import Observed


class OptimizerRecord:
    """Measures the steps of any optimizer and writes `spectrum.parquet`, without other changes.

    Measures every call of `optimizer.step` inside the `with` block, and reports every `every`
    steps; only then is the device read. The file is written at the end of the block, and by
    `write`. `read_decisions` reads what a momentum rule decided:

        with OptimizerRecord(model, optimizer, "fam.parquet", every=100):
            train()
        decisions = read_decisions("fam.parquet")

    Args:
        model: names the tensors.
        optimizer: any of famx or torch.
        file: the file, which is replaced.
        every: steps from one report to the next, at least 1; the first report needs 32 steps.
        level: see `OptimizerProbe`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        file: str | Path,
        every: int = 100,
        level: ProbeLevel = "light",
    ):
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 step")
        self.optimizer = optimizer
        self.every = every
        self.step = 0
        self.probe = OptimizerProbe(model, optimizer, level, every)
        names = self.probe.band_names
        self.log = SpectrumLog(Path(file), self.probe.names, self.probe.kinds, band_names=names)
        self.norms = torch.zeros(len(self.probe.params), device=self.probe.params[0].device)
        self.handles: Sequence[torch.utils.hooks.RemovableHandle] = ()

    def __enter__(self) -> "OptimizerRecord":
        self.handles = (
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self.handles:
            handle.remove()
        self.write()

    def write(self) -> None:
        """Writes the reports so far."""
        self.log.write()

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, args: object, options: object) -> None:
        self.step += 1
        if isinstance(optimizer, Observed):
            optimizer.observed = self.step % self.every == 0
        self.probe.before_step(self.step, self.norms)

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, args: object, options: object) -> None:
        if self.step % self.every == 0:
            # after the step, since a closure computes the gradients within it
            gradients = [torch.zeros(()) if p.grad is None else p.grad for p in self.probe.params]
            norms = torch.stack([norm.to(self.norms) for norm in torch._foreach_norm(gradients)])
            self.norms.copy_(norms)
        self.probe.after_step()
        if self.probe.metrics:
            on_host = to_host(self.probe.metrics)
            # one value or row per tensor, so none is a plain number
            by_tensor = {
                name: value for name, value in on_host.items() if isinstance(value, torch.Tensor)
            }
            self.log.add(self.step, by_tensor)
