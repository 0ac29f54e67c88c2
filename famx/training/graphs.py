"""Forward and backward passes as CUDA graphs: one per shape of a batch, captured, then replayed.

A small model is bound by the launches of its kernels, not by the GPU: the host needs 5 to 20 µs for
each of some thousand launches, the GPU 2 µs. A replay is one launch. Clipping and the optimizer run
outside of the graphs, in a few launches for all tensors, so hooks can read and change gradients.

A graph repeats kernels on fixed addresses, and no Python. What else a pass does is therefore
examined when a shape occurs for the first time, in an ordinary step, and must be one of these:
- buffers are changed in place;
- attributes of modules are replaced by tensors (metrics, sums for a learning rule); a replay
  assigns them again;
- random numbers come from the generator of the device, which is seeded before every pass.
Anything else, such as a value read from the device or a counter in Python, would be wrong in a
replay. What occurs once is harmless: kernels are compiled, tables are copied to the device. So a
shape with such an effect is examined once more; if the effect occurs again, the run names its
source once, and continues without graphs.
"""

import contextlib
import copy
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from famx.nn.batch import Batch
from famx.nn.hooks import Observed
from famx.training.device import world_size

log = logging.getLogger(__name__)

ABSENT = object()  # the value of an attribute that is not there
MAX_GRAPHS = 64  # shapes that occur later run without a graph
Objective = Callable[[Batch], tuple[Tensor, Tensor]]
"""Computes the loss of a batch on the device, and the objective: the loss with all penalties."""
Attributes = dict[nn.Module, dict[str, Any]]


@runtime_checkable
class CapturedGraph(Protocol):
    """A `torch.cuda.CUDAGraph`, or a recording of operations in its place."""

    def replay(self) -> None: ...


@dataclass
class Graph:
    """A captured pass.

    Args:
        graph: the CUDA graph.
        batch: the tensors that it reads.
        weight: the factor of the objective that it reads, and its value.
        loss: the loss that it writes.
        trained: whether each parameter gets a gradient.
        attributes: attributes of modules that the pass has replaced.
    """

    graph: CapturedGraph
    batch: Batch
    weight: Float[Tensor, ""]
    weight_value: float
    loss: Float[Tensor, ""]
    trained: list[bool]
    attributes: Attributes


class GraphedPasses:
    """Computes the loss and the gradients of batches, by graphs where the shape is known.

    Args:
        objective: the computation; it must read nothing but the tensors of the batch, and whether
            the batch has padding.
        model: the model with its current parameters and buffers.
        parameters: parameters that get gradients.
        accumulates: whether gradients of several batches are summed before a step.
        is_enabled: whether to use graphs; without them, a pass is what it would be in a plain loop.

    Attributes:
        is_steady: whether later passes take as long as the last one: it was a replay, or there are
            no graphs.
    """

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        accumulates: bool,
        is_enabled: bool,
    ):
        self.objective = objective
        self.model = model
        self.parameters = parameters
        self.accumulates = accumulates
        self.modules = list(model.modules())
        self.observed_parts = [part for part in self.modules if isinstance(part, Observed)]
        self.graphs: dict[tuple[Any, ...], Graph | None] = {}
        self.suspects: set[tuple[Any, ...]] = set()
        self.pool: Any = None
        self.gradients: list[Tensor] = []
        self.is_enabled = is_enabled
        self.is_steady = not is_enabled

    def __call__(self, batch: Batch, weight: float) -> Float[Tensor, ""]:
        """Adds weight times the gradient of the objective to `p.grad`; returns the loss, detached.

        Args:
            batch: a batch on the device.
        """
        self.is_steady = not self.is_enabled
        if not self.is_enabled:
            return self._compute(batch, weight)
        key = self._key(batch)
        if key not in self.graphs:
            # the first pass also loads the kernels, which cannot happen during a capture
            if len(self.graphs) >= MAX_GRAPHS:
                return self._compute(batch, weight)
            loss, faults = self._examine(batch, weight)
            if not faults:
                self.graphs[key] = None
            elif key in self.suspects:
                self._disable(faults[0])
            self.suspects.add(key)
            return loss
        graph = self.graphs[key] or self._try_capture(batch)
        if graph is None or not self.is_enabled:
            return self._compute(batch, weight)
        self.is_steady = self.graphs[key] is not None
        self.graphs[key] = graph
        return self._replay(graph, batch, weight)

    def _key(self, batch: Batch) -> tuple[Any, ...]:
        """Returns what decides which kernels a pass launches."""
        shapes = [(name, tensor.shape) for name, tensor in batch.tensors.items()]
        is_observed = any(part.observed for part in self.observed_parts)
        return (*shapes, batch.padding > 0, is_observed)

    def _compute(self, batch: Batch, weight: float) -> Float[Tensor, ""]:
        """Computes a pass without a graph."""
        loss, objective = self.objective(batch)
        (objective * weight).backward()
        return loss.detach()

    def _examine(self, batch: Batch, weight: float) -> tuple[Float[Tensor, ""], list[str]]:
        """Computes a pass without a graph; returns the loss, and what a replay would get wrong."""
        attributes = self._attributes()
        buffers = dict(self.model.named_buffers())
        device = batch.inputs.device
        host_state = _host_state(device)
        with _record_synchronizations(device) as locations:
            loss = self._compute(batch, weight)
        faults = [f"{location} reads from the device" for location in locations]
        if _host_state(device) != host_state:
            faults.append("a part draws random numbers on the host")
        faults += self._attribute_faults(attributes)
        for name, buffer in self.model.named_buffers():
            if buffer is not buffers[name]:
                faults.append(f"the buffer {name} is replaced in every pass, not changed in place")
        return loss, faults

    def _attribute_faults(self, before: Attributes) -> list[str]:
        """Returns the changes of attributes since `before` that a replay cannot repeat."""
        faults = []
        for name, module in self.model.named_modules():
            part = f"{name or 'the model'} ({type(module).__name__})"
            for key, value in changed(before[module], vars(module)).items():
                if not _is_replayable(value):
                    faults.append(f"{part} sets its attribute {key} in every pass")
                # a pass may read what an earlier pass has left; metrics are only written
                elif key != "metrics" and _holds_tensors(before[module].get(key)):
                    faults.append(f"{part} keeps its attribute {key} from one pass to the next")
        return faults

    def _disable(self, reason: str) -> None:
        if self.is_enabled:
            log.warning("training runs without CUDA graphs, which is slower: %s", reason)
        self.is_enabled = False
        self.graphs.clear()

    def _try_capture(self, batch: Batch) -> Graph | None:
        """Captures a pass; None, and no graphs from now on, if that is not possible."""
        attributes = self._attributes()
        try:
            graph = self._capture(batch)
            for fault in self._attribute_faults(attributes):
                self._disable(fault)
            for module in self.modules:
                values = changed(attributes[module], vars(module))
                if values:
                    graph.attributes[module] = values
            return graph
        except RuntimeError as error:
            first_line = str(error).partition("\n")[0]
            self._disable(first_line)
            return None
        finally:
            # nothing has been computed yet
            for module, values in attributes.items():
                vars(module).update(values)

    def _capture(self, batch: Batch) -> Graph:
        # all graphs add their gradients to the same memory
        if not self.gradients:
            self.gradients = [torch.zeros_like(p) for p in self.parameters]
        # the tensors that replays read; the host's fields of a batch are not replayed
        static = copy.copy(batch)
        for name, tensor in batch.tensors.items():
            setattr(static, name, tensor.clone())
        static.ids = _Unreadable(batch.ids)
        static.texts = _Unreadable(batch.texts)
        weight = torch.ones((), device=batch.inputs.device)

        graph = torch.cuda.CUDAGraph()
        # other threads load and move data meanwhile
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            loss, objective = self.objective(static)
            results = torch.autograd.grad(objective * weight, self.parameters, allow_unused=True)
            # gradients of parameters that the pass uses
            targets = []
            sources = []
            for gradient, result in zip(self.gradients, results, strict=True):
                if result is not None:
                    targets.append(gradient)
                    sources.append(result)
            if self.accumulates:
                torch._foreach_add_(targets, sources)
            else:
                torch._foreach_copy_(targets, sources)
        self.pool = graph.pool()
        return Graph(
            graph=graph,
            batch=static,
            weight=weight,
            weight_value=1.0,
            loss=loss.detach(),
            trained=[result is not None for result in results],
            attributes={},
        )

    def _replay(self, graph: Graph, batch: Batch, weight: float) -> Float[Tensor, ""]:
        # inputs
        for name, source in batch.tensors.items():
            getattr(graph.batch, name).copy_(source, non_blocking=True)
        if weight != graph.weight_value:
            graph.weight.fill_(weight)
            graph.weight_value = weight
        if self.accumulates:
            self._collect_gradients()
        # the pass
        graph.graph.replay()
        # what Python did in the captured pass
        for module, values in graph.attributes.items():
            vars(module).update(values)
        for p, gradient, is_trained in zip(
            self.parameters, self.gradients, graph.trained, strict=True
        ):
            if is_trained:
                p.grad = gradient
        return graph.loss

    def _collect_gradients(self) -> None:
        """Puts the sum of the gradients so far where the graphs add to it."""
        missing = []
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            if p.grad is None:
                missing.append(gradient)
            elif p.grad is not gradient:
                # of a pass without a graph
                gradient.copy_(p.grad)
                p.grad = gradient
        if missing:
            torch._foreach_zero_(missing)

    def _attributes(self) -> Attributes:
        return {module: dict(vars(module)) for module in self.modules}


def uses_graphs(setting: str, device: torch.device) -> bool:
    """Returns whether passes run as CUDA graphs, if all parts allow it.

    Args:
        setting: the option `trainer.graphs`.
    """
    # processes exchange gradients during the backward pass
    return setting == "auto" and device.type == "cuda" and world_size() == 1


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes whose values are other objects than before."""
    return {key: value for key, value in after.items() if before.get(key, ABSENT) is not value}


def _is_replayable(value: Any) -> bool:
    """Returns whether an attribute holds nothing but tensors."""
    return all(leaf is None or isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


@contextlib.contextmanager
def _record_synchronizations(device: torch.device) -> Iterator[list[str]]:
    """Yields a list, filled on exit with the lines of code that waited for the device."""
    locations: list[str] = []
    if device.type != "cuda":
        yield locations
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield locations
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            locations.append(f"{warning.filename}:{warning.lineno}")


def _host_state(device: torch.device) -> tuple[Any, ...]:
    """Returns the state of the random generators of the host, to be compared."""
    state = (random.getstate(), repr(np.random.get_state(legacy=False)))
    if device.type == "cpu":
        # torch's generator is the one of the device
        return state
    return (*state, torch.get_rng_state().numpy().tobytes())


class _Unreadable(list):
    """Names or texts of a batch that is being captured: a graph would repeat those of one batch."""

    def _refuse(self, *_: object) -> NoReturn:
        raise RuntimeError("the loss reads the names or texts of a batch, on the host")

    __iter__ = _refuse
    __getitem__ = _refuse
