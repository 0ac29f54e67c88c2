"""Steps that a CUDA graph replays: the same operations in the same memory, and no number of the host's in them."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import famx.optim.base
import famx.optim.maxfactor
from famx.notation import UserError
from famx.optim import FAM, Lookahead
from famx.optim.base import Optimizer
from famx.optim.ema_sgd import EmaSGD
from famx.optim.fam_adamw import FAMAdamW
from famx.registry import build, get, names

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
BEFORE, REPLAYED = 101, 40  # rules act from step 101 on, and measure every 8


class Graph(TorchDispatchMode):
    """What a CUDA graph does, on any device: takes operations down, and does them again in the same memory."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.taken.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.taken:
            given = {
                x.untyped_storage()._cdata
                for x in tree_leaves((args, kwargs))
                if isinstance(x, torch.Tensor)
            }
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage()._cdata not in given:
                    old.copy_(new)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The steps as they are taken where numbers stay on the device."""
    for module in (famx.optim.base, famx.optim.maxfactor):
        monkeypatch.setattr(module, "scalars", lambda values: list(values.unbind()))
    monkeypatch.setattr(EmaSGD, "at_once", EmaSGD.in_turn)
    monkeypatch.setattr(FAMAdamW, "in_one_kernel", FAMAdamW.in_turn)


def run(optimizer, gradients, capture):
    """The parameters after each of the last steps, all of them taken, or all but the first replayed."""
    (group,) = optimizer.param_groups
    found = []
    for step, row in enumerate(gradients):
        for p, gradient in zip(group["params"], row, strict=True):
            p.grad = gradient.clone() if p.grad is None else p.grad.copy_(gradient)
        if capture and step == BEFORE:
            with Graph() as graph:
                optimizer.step()
        elif capture and step > BEFORE:
            graph.replay()
        else:
            optimizer.step()
        if step >= BEFORE:
            found.append([p.detach().clone() for p in group["params"]])
    return found


def params():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((40, 30), (20, 70), (30,))]


def noise():
    """Gradients that drift slowly, and one that is not finite among those that are replayed."""
    generator, drift = torch.Generator().manual_seed(0), [torch.zeros_like(p) for p in params()]
    for step in range(BEFORE + REPLAYED):
        row = [d.lerp_(torch.randn(d.shape, generator=generator), 0.1).clone() for d in drift]
        if step == BEFORE + 20:
            row[0][0, 0] = torch.nan
        yield row


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "make",
    [*(partial(get("optim", name)) for name in OPTIMIZERS)]
    + [partial(EmaSGD, momentum=partial(build, "momentum", {"name": rule})) for rule in RULES],
    ids=OPTIMIZERS + RULES,
)
def test_replayed_steps_are_those_that_would_have_been_taken(make):
    rows = list(noise())
    taken, replayed = make(params()), make(params())
    replayed.capturable = True
    for one, other in zip(run(taken, rows, False), run(replayed, rows, True), strict=True):
        for p, q in zip(one, other, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
    assert int(replayed.skipped) == 1
    assert int(replayed.calls) == taken.calls


def test_without_capturable_the_replay_differs_and_so_the_test_above_can_fail(as_on_a_gpu):
    rows = list(noise())
    taken, replayed = FAM(params()), FAM(params())
    ends = [
        run(optimizer, rows, capture)[-1]
        for optimizer, capture in ((taken, False), (replayed, True))
    ]
    assert not torch.allclose(ends[0][0], ends[1][0], rtol=1e-5, atol=1e-6)


def test_a_capture_is_refused_in_a_sentence_where_it_would_replay_as_the_same_step(monkeypatch):
    ready, fresh, around = FAM(params()), FAM(params()), Lookahead(params())
    random = FAM(params(), partial(build, "momentum", {"name": "random"}))
    for optimizer in (ready, fresh, random):
        for p, gradient in zip(optimizer.param_groups[0]["params"], next(noise()), strict=True):
            p.grad = gradient
    ready.capturable = random.capturable = True
    ready.step()
    with pytest.raises(
        UserError, match="capturable=True is not for Random, which draws on the host"
    ):
        random.step()
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    ready.step()
    with pytest.raises(
        UserError,
        match=r"EmaSGD\.step counts on the host: set capturable=True and take a step before",
    ):
        EmaSGD(params()).step()
    with pytest.raises(UserError, match=r"FAM\.step counts on the host"):
        fresh.step()
    with pytest.raises(
        UserError, match="capturable=True is not for Lookahead: set it on the optimizer within"
    ):
        around.capturable = True
    with pytest.raises(
        UserError, match=r"Lookahead\.step counts on the host: capture that of the optimizer within"
    ):
        around.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gpu_replays_the_steps_that_it_would_have_taken(name):
    rows = [[gradient.cuda() for gradient in row] for row in noise()]
    ends = []
    for capture in (False, True):
        own = [torch.nn.Parameter(p.detach().cuda()) for p in params()]
        optimizer, graph = get("optim", name)(own), torch.cuda.CUDAGraph()
        optimizer.capturable = capture
        for p, gradient in zip(own, rows[0], strict=True):
            p.grad = gradient.clone()
        for step, row in enumerate(rows):
            for p, gradient in zip(own, row, strict=True):
                p.grad.copy_(gradient)
            if not capture or step < BEFORE:
                optimizer.step()
                continue
            if step == BEFORE:
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    optimizer.step()
            graph.replay()
        ends.append(own)
    for p, q in zip(*ends, strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-5)
