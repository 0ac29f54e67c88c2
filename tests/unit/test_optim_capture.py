"""Steps that a CUDA graph replays: the same operations, without a number of the host."""

import importlib
from functools import partial

import pytest
import torch
from recorded_graph import RecordedGraph
from torch.utils._python_dispatch import _disable_current_modes

import famx.kernels
import famx.optim.base
import famx.optim.maxfactor
from famx.notation import UserError
from famx.optim import FAM, Lookahead
from famx.optim.base import Optimizer
from famx.optim.ema_sgd import EmaSGD
from famx.optim.fam_adamw import FAMAdamW
from famx.registry import build, get, names

# `fam_published` draws its samples on the host in every step
RULES = [
    name
    for name in names("momentum")
    if get("momentum", name).capturable and name != "fam_published"
]
OPTIMIZERS = [
    name
    for name in names("optim")
    if issubclass(get("optim", name), Optimizer) and name != "fam_published"
]
# rules act from step 101 on, and measure every 8 steps
BEFORE, REPLAYED = 101, 40


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Takes steps as where numbers stay on the device."""
    for module in (famx.optim.base, famx.optim.maxfactor):
        monkeypatch.setattr(module, "scalars", lambda values: list(values.unbind()))
    monkeypatch.setattr(EmaSGD, "_fused_step", EmaSGD._per_tensor_step)
    monkeypatch.setattr(FAMAdamW, "_fused_step", FAMAdamW._per_tensor_step)


def run(optimizer, gradients, capture, before=BEFORE, graph=None):
    """Returns the parameters after each of the last steps; with `capture`, all but one replayed.

    Args:
        before: number of steps before the last ones.
    """
    graph = graph or RecordedGraph()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    results = []
    for step, row in enumerate(gradients):
        for p, gradient in zip(params, row, strict=True):
            # into the same memory, where the graph reads it
            p.grad = gradient.clone() if p.grad is None else p.grad.copy_(gradient)
        if capture and step == before:
            graph.operations.clear()
            with graph:
                optimizer.step()
        elif capture and step > before:
            graph.replay()
        else:
            optimizer.step()
        if step >= before:
            results.append([p.detach().clone() for p in params])
    return results


def params():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((40, 30), (20, 70), (30,))]


def drifting_gradients():
    """Yields gradients that change slowly; one of those that are replayed is not finite."""
    generator = torch.Generator().manual_seed(0)
    drift = [torch.zeros_like(p) for p in params()]
    for step in range(BEFORE + REPLAYED):
        row = [d.lerp_(torch.randn(d.shape, generator=generator), 0.1).clone() for d in drift]
        if step == BEFORE + 20:
            row[0][0, 0] = torch.nan
        yield row


def with_rule(name):
    return partial(EmaSGD, momentum=partial(build, "momentum", {"name": name}))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "make",
    [*(get("optim", name) for name in OPTIMIZERS), *map(with_rule, RULES)],
    ids=OPTIMIZERS + RULES,
)
def test_replayed_steps_equal_steps(make):
    rows = list(drifting_gradients())
    optimizer = make(params())
    expected = run(optimizer, rows, capture=False)
    captured = make(params())
    captured.capturable = True
    results = run(captured, rows, capture=True)
    for expected_params, result_params in zip(expected, results, strict=True):
        for p, q in zip(expected_params, result_params, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
    assert int(captured.skipped) == 1
    assert int(captured.calls) == optimizer.calls


class RecordedKernel:
    """A kernel whose launches a `Graph` records."""

    def __init__(self, kernel, graph):
        self.kernel = kernel
        self.graph = graph

    def __getitem__(self, grid):
        launch = self.kernel[grid]

        def run_kernel(*args, **kwargs):
            # not the operations of the interpreter
            with _disable_current_modes():
                launch(*args, **kwargs)
            self.graph.operations.append((launch, args, kwargs, None))

        return run_kernel


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter of kernels")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_replayed_launches_equal_launches(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(famx.kernels, "available", lambda device: True)
    # the rule measures from step 32 on, and acts
    momentum = partial(build, "momentum", {"name": "fam", "start_step": 10})
    make = partial(FAMAdamW, momentum=momentum)
    rows = list(drifting_gradients())[85:]
    expected = run(make(params()), rows, capture=False, before=20)
    graph = RecordedGraph()
    for module_name in ("adamw", "multi_tensor", "sketch", "band_shares"):
        module = importlib.import_module(f"famx.kernels.{module_name}")
        for name, kernel in list(vars(module).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, RecordedKernel(kernel, graph))
    captured = make(params())
    captured.capturable = True
    results = run(captured, rows, capture=True, before=20, graph=graph)
    assert not torch.equal(captured.rule.coefficients, captured.rule.base)
    for expected_params, result_params in zip(expected, results, strict=True):
        for p, q in zip(expected_params, result_params, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
    assert int(captured.skipped) == 1


@pytest.mark.usefixtures("as_on_a_gpu")
def test_replayed_steps_differ_without_capturable():
    rows = list(drifting_gradients())
    expected = run(FAM(params()), rows, capture=False)
    results = run(FAM(params()), rows, capture=True)
    assert not torch.allclose(expected[-1][0], results[-1][0], rtol=1e-5, atol=1e-6)


def test_a_capture_is_refused_where_each_replay_would_be_the_same_step(monkeypatch):
    ready = FAM(params())
    fresh = FAM(params())
    random = FAM(params(), momentum=partial(build, "momentum", {"name": "random"}))
    for optimizer in (ready, fresh, random):
        row = next(drifting_gradients())
        for p, gradient in zip(optimizer.param_groups[0]["params"], row, strict=True):
            p.grad = gradient
    ready.capturable = True
    ready.step()
    random.capturable = True
    with pytest.raises(UserError, match="capturable=True is not possible with Random"):
        random.step()
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    ready.step()
    with pytest.raises(UserError, match=r"EmaSGD\.step counts on the host: set capturable=True"):
        EmaSGD(params()).step()
    with pytest.raises(UserError, match=r"FAM\.step counts on the host"):
        fresh.step()
    wrapper = Lookahead(params())
    with pytest.raises(UserError, match="capturable=True is not possible with Lookahead"):
        wrapper.capturable = True
    with pytest.raises(UserError, match=r"Lookahead\.step counts on the host"):
        wrapper.step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gpu_replays_steps_that_equal_steps(name):
    rows = [[gradient.cuda() for gradient in row] for row in drifting_gradients()]
    expected = run_on_gpu(name, rows, capture=False)
    results = run_on_gpu(name, rows, capture=True)
    for p, q in zip(expected, results, strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-5)


def run_on_gpu(name, rows, capture):
    """Returns the parameters after all steps."""
    gpu_params = [torch.nn.Parameter(p.detach().cuda()) for p in params()]
    optimizer = get("optim", name)(gpu_params)
    optimizer.capturable = capture
    graph = torch.cuda.CUDAGraph()
    for p, gradient in zip(gpu_params, rows[0], strict=True):
        p.grad = gradient.clone()
    for step, row in enumerate(rows):
        for p, gradient in zip(gpu_params, row, strict=True):
            p.grad.copy_(gradient)
        if not capture or step < BEFORE:
            optimizer.step()
            continue
        if step == BEFORE:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                optimizer.step()
        graph.replay()
    return gpu_params
