"""Parts of layers can be captured in a CUDA graph: a training pass does not read the device."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from famx.analysis.cost import Sizes, build_alone, example_input
from famx.nn.hooks import HasPenalty
from famx.nn.state import DecodeState
from famx.registry import LAYER_ROOMS, names

SIZES = Sizes(d_model=24, n_heads=4, t=9)
PARTS = [(room, name) for room in LAYER_ROOMS for name in names(room)]
# operators whose output has a size or value that the host has to know; `repeat_interleave` too,
# unless it has a number of repeats
READS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "is_nonzero",
    "bincount",
    "repeat_interleave.Tensor",
)

TRANSFERS = (
    torch.tensor,
    torch.as_tensor,
    torch.from_numpy,
    Tensor.tolist,
    Tensor.item,
    Tensor.numpy,
    Tensor.new_tensor,
    Tensor.cpu,
)


class NoHostReads(TorchDispatchMode):
    """Raises where an operator makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if name in READS or name.partition(".")[0] in READS:
            raise AssertionError(f"{name} reads the device")
        # an index of booleans is converted to positions, which are counted
        if name.startswith("index"):
            for indices in args[1:2]:
                for index in indices if isinstance(indices, (list, tuple)) else [indices]:
                    assert not is_mask(index), f"{name} is given a mask"
        return func(*args, **(kwargs or {}))


class NoTransfers(TorchFunctionMode):
    """Raises where numbers of the host become a tensor, or a tensor becomes numbers.

    Operators do not show these on a CPU.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in TRANSFERS, f"{func.__name__} copies between host and device"
        return func(*args, **(kwargs or {}))


@contextmanager
def on_device():
    """Refuses what makes the host wait for a device, or the device for the host."""
    with NoHostReads(), NoTransfers():
        yield


def is_mask(index):
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def build_part(room, name, causal=False):
    torch.manual_seed(0)
    return build_alone(room, name, SIZES._replace(causal=causal)).train()


def training_pass(part, room, x, mask=None):
    """Runs a training pass forward and backward, with penalties."""
    y = part(x, mask=mask) if room in ("attention", "layer") else part(x)
    loss = y.square().mean()
    for module in part.modules():
        penalty = module.penalty() if isinstance(module, HasPenalty) else None
        if penalty is not None:
            loss = loss + penalty
    loss.backward()


def masks(room):
    if room not in ("attention", "layer"):
        return [None]
    padding = torch.ones(1, 1, 1, SIZES.t, dtype=torch.bool)
    padding[..., 7:] = False
    return [None, padding]


def plain_attributes(part):
    """Returns the attributes of all modules that hold no tensor, by name."""
    attributes = {}
    for name, module in part.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and not holds_tensor(value):
                attributes[f"{name}.{key}"] = copy.deepcopy(value)
    return attributes


def tensor_attributes(part):
    """Returns the identity of all tensors that modules hold, but for those of the last call."""
    attributes = {}
    for name, module in part.named_modules():
        for key, value in vars(module).items():
            # the penalty belongs to the loss of its call; metrics are of calls that are observed
            if key in ("last_compute", "metrics") or key.startswith("_"):
                continue
            if holds_tensor(value):
                attributes[f"{name}.{key}"] = id(value)
    for name, buffer in part.named_buffers():
        attributes[name] = (id(buffer), buffer.data_ptr())
    return attributes


def holds_tensor(value):
    if isinstance(value, (list, tuple)):
        return any(map(holds_tensor, value))
    if isinstance(value, dict):
        return any(map(holds_tensor, value.values()))
    return isinstance(value, Tensor)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("room", "name"), PARTS)
def test_a_training_pass_does_not_read_the_device(room, name, causal):
    part = build_part(room, name, causal)
    x = example_input(room, SIZES)
    for mask in masks(room):
        # the first pass may fill tables of constants, as a graph's warm-up does
        training_pass(part, room, x, mask)
        with on_device():
            training_pass(part, room, x, mask)
            training_pass(part, room, x, mask)


@pytest.mark.parametrize(("room", "name"), PARTS)
def test_a_training_pass_replaces_no_attribute(room, name):
    part = build_part(room, name)
    x = example_input(room, SIZES)
    training_pass(part, room, x)
    attributes = plain_attributes(part)
    tensors = tensor_attributes(part)
    training_pass(part, room, x)
    assert plain_attributes(part) == attributes
    assert tensor_attributes(part) == tensors


@pytest.mark.parametrize("name", names("attention"))
def test_a_full_pass_with_messages_does_not_read_the_device(name):
    part = build_part("attention", name)
    x = example_input("attention", SIZES)
    with on_device():
        state = DecodeState(incremental=False)
        part(x + part(x, state=state), state=state).sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
# a leaf belongs to the stream on which it was first used
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")
@pytest.mark.parametrize(("room", "name"), PARTS)
def test_a_training_pass_is_captured_in_a_graph(room, name):
    sizes = SIZES._replace(device="cuda")
    part = build_alone(room, name, sizes).train()
    x = example_input(room, sizes)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            training_pass(part, room, x)
    torch.cuda.current_stream().wait_stream(stream)
    # gradients are allocated by the graph
    part.zero_grad(set_to_none=True)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training_pass(part, room, x)
    graph.replay()
    gradients = [p.grad for p in (x, *part.parameters()) if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_reads_of_the_device_are_reported():
    x = torch.randn(5)
    reads = (
        lambda: x.sum().item(),
        lambda: bool(x[0] > 0),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: x.tolist(),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: x.index_put((x > 0,), torch.zeros(())),
    )
    for read in reads:
        with pytest.raises(AssertionError, match=r"device|mask"), on_device():
            read()
    # numbers of the host, and a selection of a known size
    with on_device():
        torch.where(x > 0, x, 0.0).topk(2).values.masked_fill(x[:2] > 0, 1.0)


def test_a_counter_and_a_new_buffer_are_reported():
    class Counting(nn.Module):
        """Counts its calls, and replaces a buffer."""

        def __init__(self):
            super().__init__()
            self.calls = 0
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            self.calls += 1
            self.mean = self.mean + 1
            return x

    part = Counting()
    attributes = plain_attributes(part)
    tensors = tensor_attributes(part)
    replaced = part.mean
    part(torch.zeros(1))
    assert plain_attributes(part) != attributes
    assert tensor_attributes(part) != tensors
    assert replaced is not part.mean
