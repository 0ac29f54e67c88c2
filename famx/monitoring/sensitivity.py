"""Norms of Jacobians: from which positions each position of an attention block reads."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.monitoring.metrics import room_by_module

MAX_QUERIES = 64  # rows of a map; of more positions, so many are measured
DIRECTIONS = 4  # in which the outputs are measured


class Sensitivity(NamedTuple):
    """How much the output of each query depends on the input of each source position.

    Args:
        shares: shares of the sources; each row sums to 1, or is NaN if it depends on none.
        queries: positions of the rows.
        length: number of positions that could be queries.
        from_memory: whether the sources are positions of a memory, not of the queries' sequence.
    """

    shares: Float[Tensor, "q s"]
    queries: Int[Tensor, " q"]
    length: int
    from_memory: bool


def attention_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the attention blocks of a model by name, without blocks inside of others.

    The name is that of the module, with numbers from 1 and without `decoder` and `attention`:
    `layers.0.attention` is `layer_1`, `decoder.memory_layers.1.attention` is `memory_layer_2`.
    """
    blocks: dict[str, nn.Module] = {}
    paths: list[str] = []
    for path, room in room_by_module(model).items():
        if room != "attention" or any(path.startswith(f"{outer}.") for outer in paths):
            continue
        paths.append(path)
        name = path.removeprefix("decoder.").removesuffix(".attention")
        name = re.sub(r"layers\.(\d+)", lambda match: f"layer_{int(match[1]) + 1}", name)
        blocks[name.replace(".", "_")] = model.get_submodule(path)
    return blocks


def measure_sensitivity(
    blocks: Mapping[str, nn.Module],
    run: Callable[[], object],
    max_queries: int = MAX_QUERIES,
    directions: int = DIRECTIONS,
) -> dict[str, Sensitivity]:
    """Measures attention blocks in one pass of a model over one sequence.

    A block maps x (t d) to y (t d), the sum that a layer adds to x. Of the query t and the source
    s, which is a position of x or of the memory,

        S[t, s] = || dy_t / dx_s ||,        share[t, s] = S[t, s] / sum_s' S[t, s'],

    the Frobenius norm of a Jacobian (d d). It is defined for each block, with or without a softmax,
    and counts all ways from x_s to y_t: the value of s, but also what its key and the query of t
    change in the weights. Hard gates have the gradient by which they learn. What other layers send
    to the block is constant.

    As |J|^2 = (d / n) sum_i |J^T v_i|^2 in expectation over n orthonormal directions v_i, and
    exactly for n = d, it takes a backward pass per direction, of a batch that has one row for each
    query. The directions are always the same. Nothing of the model changes: gradients of parameters
    are not touched, and nothing is drawn from a global generator.

    Args:
        blocks: attention blocks by name, in evaluation mode.
        run: passes one sequence (a batch of one) through the model that has them.
        max_queries: number of queries that are measured, spread over all positions.
        directions: n, at most d.

    Returns:
        A map for each block that the pass has called.
    """
    maps: dict[str, Sensitivity] = {}
    with torch.enable_grad(), _hooks() as handles:
        for name, block in blocks.items():
            probe = _Probe(block, max_queries, directions)
            handles.append(block.register_forward_pre_hook(probe.before, with_kwargs=True))
            handles.append(block.register_forward_hook(partial(probe.after, maps, name)))
        run()
    return maps


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


class _Probe:
    """Gives a block one row for each query, and differentiates the outputs of these queries."""

    def __init__(self, block: nn.Module, max_queries: int, directions: int):
        self.signature = inspect.signature(block.forward)
        self.max_queries = max_queries
        self.directions = directions

    def before(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        x, memory, *others = bound.args
        self.length = x.shape[1]
        size = min(self.length, self.max_queries)
        self.queries = torch.linspace(0, self.length - 1, size, device=x.device).round().long()
        self.from_memory = memory is not None
        # graphs of other blocks end here
        x = x.detach().expand(size, -1, -1)
        source = x if memory is None else memory.detach().expand(size, -1, -1)
        self.source = source.contiguous().requires_grad_()
        inputs = (self.source, None) if memory is None else (x, self.source)
        return (*inputs, *others), bound.kwargs

    def after(
        self,
        maps: dict[str, Sensitivity],
        name: str,
        block: nn.Module,
        inputs: object,
        y: Float[Tensor, "q t d"],
    ) -> Float[Tensor, "1 t d"]:
        # row i of the batch is differentiated at query i
        rows = torch.arange(len(self.queries), device=y.device)
        outputs = y[rows, self.queries]
        squares = torch.zeros(self.source.shape[:2], device=y.device)
        for direction in _directions(y.shape[-1], self.directions).to(y):
            total = (outputs @ direction).sum()
            (gradient,) = torch.autograd.grad(total, self.source, retain_graph=True)
            squares += gradient.float().square().sum(-1)
        norms = squares.sqrt()
        shares = norms / norms.sum(1, keepdim=True)  # NaN where all are 0
        maps[name] = Sensitivity(shares.cpu(), self.queries.cpu(), self.length, self.from_memory)
        return y[:1].detach()


def _directions(d: int, n: int) -> Float[Tensor, "n d"]:
    """Returns n orthonormal directions, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(d, min(n, d), generator=generator)).Q.T
