"""Optimizers that use kernels take the same steps as those without them.

Without CUDA, Triton runs the kernels on the CPU (TRITON_INTERPRET=1).
"""

import importlib
from functools import partial

import pytest
import torch
from torch import nn

import famx.kernels
from famx.nn.clip import clip_by_unit_norm
from famx.optim.ema_sgd import EmaSGD
from famx.registry import build, get

pytest.importorskip("triton.language", reason="needs Triton")
adamw = importlib.import_module("famx.kernels.adamw")
multi_tensor = importlib.import_module("famx.kernels.multi_tensor")
unit_clip = importlib.import_module("famx.kernels.unit_clip")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# NumPy, which computes for the interpreter, warns where a GPU returns inf or NaN
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("rounding_of_a_gpu"),
]
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.gpu)

STEPS = 41  # FAM measures in steps 32 and 40
OPTIMIZERS = {
    "ema_sgd": partial(get("optim", "ema_sgd"), lr=0.1, weight_decay=0.1, debias=True),
    "maximize": partial(get("optim", "ema_sgd"), lr=0.1, weight_decay=0.1, maximize=True),
    "coupled": partial(get("optim", "ema_sgd"), lr=0.1, weight_decay=0.1, decoupled=False),
    "fam": partial(get("optim", "fam"), lr=0.1, weight_decay=0.1, fam_start_step=10),
    "simple_fam": partial(get("optim", "simple_fam"), lr=0.1),
    "fam_adamw": partial(
        get("optim", "fam_adamw"),
        lr=0.01,
        momentum=partial(build, "momentum", {"name": "fam", "start_step": 10}),
    ),
    "random": partial(
        get("optim", "fam_adamw"),
        lr=0.01,
        momentum=partial(build, "momentum", {"name": "random"}),
    ),
    "fam_bandwise": partial(get("optim", "fam_bandwise"), lr=0.1),
}


def parameters(dtype):
    """Returns two groups; one parameter is every second column of a larger tensor."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in ((40, 60), (30,), (0,), (20, 70), ()):
        values = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        params.append(nn.Parameter(values))
    strided = torch.stack([params[3].detach(), params[3].detach()], -1)[..., 0]
    params[3] = nn.Parameter(strided)
    attention = {"params": params[:2], "kind": "attention", "alpha": 0.8, "lr": 0.05}
    return params, [attention, {"params": params[2:]}]


def run(make, dtype):
    """Returns the parameters after all steps, and the optimizer."""
    params, groups = parameters(dtype)
    optimizer = make(groups)
    generator = torch.Generator().manual_seed(0)
    drift = [torch.zeros(p.shape) for p in params]
    for step in range(STEPS):
        for i, (p, d) in enumerate(zip(params, drift, strict=True)):
            d.lerp_(torch.randn(p.shape, generator=generator), 0.1)
            p.grad = d.to(DEVICE, dtype, copy=True)
            # other tensors without a gradient in some steps, and a group without one
            if (step in (4, 5) and i != step) or (step == 7 and i < 2):
                p.grad = None
        if step in (0, 20):
            params[0].grad[0, 0] = torch.nan
        if step == 30:
            params[1].grad = params[1].grad.expand(2, 30).t()[:, 0]
        if step == 33:
            optimizer.found_inf = torch.tensor(True, device=DEVICE)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_steps_by_kernels_equal_steps_without_them(name, dtype, monkeypatch):
    monkeypatch.setattr(famx.kernels, "available", lambda device: False)
    # the fused step of the CPU rounds once more for the weight decay
    if dtype == torch.bfloat16:
        monkeypatch.setattr(EmaSGD, "_fused_step", EmaSGD._per_tensor_step)
    expected, plain = run(OPTIMIZERS[name], dtype)
    monkeypatch.setattr(famx.kernels, "available", lambda device: True)
    params, optimizer = run(OPTIMIZERS[name], dtype)
    tolerance = {"rtol": 0.05, "atol": 0.02} if dtype == torch.bfloat16 else {}
    for p, q in zip(params, expected, strict=True):
        assert p.isfinite().all()
        torch.testing.assert_close(p, q, **tolerance)
    assert optimizer.skipped == plain.skipped == 3
    assert torch.equal(optimizer.steps, plain.steps)
    torch.testing.assert_close(optimizer.momentum_products, plain.momentum_products)
    assert [len(state) for state in optimizer.state.values()] == [
        len(state) for state in plain.state.values()
    ]
    assert len(optimizer.state) == len(plain.state)


def launches(monkeypatch):
    """Returns a list that names the kernels which are launched from here on."""
    launched = []
    for module in (multi_tensor, adamw, unit_clip):
        for name, kernel in vars(module).items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, RecordedKernel(name, kernel, launched))
    return launched


class RecordedKernel:
    def __init__(self, name, kernel, launched):
        self.name = name
        self.kernel = kernel
        self.launched = launched

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.kernel[grid]


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize(
    ("name", "step"), [("fam", "_step_kernel"), ("fam_adamw", "_adamw_kernel")]
)
def test_a_step_launches_a_kernel_for_each_group(name, step, monkeypatch):
    params, groups = parameters(torch.float32)
    optimizer = OPTIMIZERS[name](groups)
    for p in params:
        p.grad = torch.ones_like(p)
    launched = launches(monkeypatch)
    optimizer.step()
    assert launched == ["_non_finite_kernel", "_count_step_kernel", step, step]
    launched.clear()
    clip_by_unit_norm(params, 0.1)
    assert launched == ["_clip_kernel", "_norm_kernel"]
