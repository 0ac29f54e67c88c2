"""The gradients of a step: loss and backward pass of this process's share of each batch."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from famx.nn.batch import Batch
from famx.nn.hooks import CountsInputs, HasPenalty
from famx.seeding import seed_global_generators
from famx.task.base import Task
from famx.training.compiled import compile_layers
from famx.training.device import forward_dtype, rank, world_size
from famx.training.graphs import GraphedPasses, uses_graphs
from famx.training.prefetch import Prefetched, prefetch
from famx.training.trainer_config import TrainerConfig

Position = tuple[int, int, Batch]  # epoch, position of the batch in it, batch


class StepGradients:
    """Adds the gradients of the batches of a step to `p.grad`.

    Args:
        parameters: parameters that get gradients.
        config: the options `accumulate`, `precision`, `graphs` and `compile`.
        seed_for: `(purpose, *index) -> int`, the seed of a random draw.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        parameters: Sequence[nn.Parameter],
        config: TrainerConfig,
        device: torch.device,
        seed_for: Callable[..., int],
    ):
        self.task = task
        self.device = device
        self.seed_for = seed_for
        self.dtype = forward_dtype(config.precision, device)
        self.rank = rank()
        self.world_size = world_size()
        self.penalized = [module for module in model.modules() if isinstance(module, HasPenalty)]
        # the model shared between processes
        self.wrapped: nn.Module = model
        self.counting = [module for module in model.modules() if isinstance(module, CountsInputs)]
        if self.world_size > 1:
            self.wrapped = DistributedDataParallel(model)
        if config.compile:
            compile_layers(model)
        self.passes = GraphedPasses(
            self._objective,
            model,
            parameters,
            accumulates=config.accumulate > 1,
            is_enabled=uses_graphs(config.graphs, device),
        )

    @property
    def is_steady(self) -> bool:
        """True if later steps take as long as the last one."""
        return self.passes.is_steady

    def prefetch(self, positions: Iterable[Position]) -> Iterator[Prefetched]:
        """Yields batches with this process's share of them on the device."""
        return prefetch(positions, self.device, self._share)

    def __call__(self, fetched: Sequence[Prefetched], step: int) -> Tensor:
        """Accumulates the gradients of this process's share; returns its loss without penalties.

        Args:
            step: number of earlier steps, on which random draws depend.
        """
        total = sum(self.task.count(item.batch) for item in fetched)
        loss_sum = torch.zeros((), device=self.device)
        for i, item in enumerate(fetched):
            seed_global_generators(self.seed_for("step", step, i, self.rank), self.device)
            is_counted = self.rank < len(item.batch.ids)
            weight = self.task.count(item.share) / total if is_counted else 0.0
            for module in self.counting:
                module.is_counted = is_counted
            with self._exchange(is_last=i + 1 == len(fetched)):
                loss = self.passes(item.on_device, weight * self.world_size)
            loss_sum += loss * weight
        return loss_sum

    def _share(self, batch: Batch) -> Batch:
        # a batch of fewer rows than processes is repeated, with a weight of 0
        return batch.shard(self.rank % len(batch.ids), self.world_size)

    def _objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Computes the loss of a batch on the device, and the loss with all penalties."""
        is_bf16 = self.dtype is torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16):
            loss = self.task.loss(self.wrapped, batch)
        penalties = [module.penalty() for module in self.penalized]
        return loss, sum((p for p in penalties if p is not None), loss)

    def _exchange(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Postpones the exchange of gradients between processes to the last batch of a step."""
        if isinstance(self.wrapped, DistributedDataParallel) and not is_last:
            return self.wrapped.no_sync()
        return contextlib.nullcontext()
