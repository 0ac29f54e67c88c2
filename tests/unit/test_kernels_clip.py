"""Clipping by unit with the kernel equals its plain form.

Without CUDA, Triton runs the kernel on the CPU (TRITON_INTERPRET=1).
"""

import importlib

import pytest
import torch
from reference.clip import plain_clip
from torch import nn

import famx.kernels
from famx.nn.clip import clip_by_unit_norm

pytest.importorskip("triton.language", reason="needs Triton")
LONG_BLOCK = importlib.import_module("famx.kernels.unit_clip").LONG_BLOCK

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# NumPy, which computes for the interpreter, warns where a GPU returns inf or NaN
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("rounding_of_a_gpu"),
]
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.gpu)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(), (7,), (5, 4), (6, 3, 2), (4, 3, 5, 2), (0,), (0, 3), (3, 0), (300, 3), (2, 1100)]
LONG_SHAPES = [(LONG_BLOCK * 2 + 3,), (3, LONG_BLOCK + 8)]


def clip_example(dtypes, scale):
    generator = torch.Generator().manual_seed(1)
    params = []
    for i, shape in enumerate(SHAPES + LONG_SHAPES):
        p = torch.randn(shape, generator=generator).to(DEVICE, dtypes[i % len(dtypes)])
        p.grad = (scale * torch.randn(shape, generator=generator)).to(p)
        params.append(p)
    # another memory order, no gradient, weights and gradients of zeros
    params[4].data = params[4].contiguous(memory_format=torch.channels_last)
    params[2].grad = params[2].grad.t().contiguous().t()
    params[3].grad = None
    params[8][1] = 0.0
    params[8].grad[2] = 0.0
    params[9].grad[1] = 0.0
    return params


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in DTYPES), DTYPES])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_clipping_equals_its_plain_form(dtypes, scale):
    params = clip_example(dtypes, scale)
    expected, expected_norms = plain_clip(params, 0.5)
    norms = clip_by_unit_norm(params, 0.5)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms.cpu(), torch.tensor(expected_norms), rtol=1e-5, atol=0)
    for p, gradient in zip(params, expected, strict=True):
        assert (p.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient.to(p.dtype))


@pytest.mark.parametrize("max_ratio", [0.1, torch.inf])
def test_clipping_treats_values_that_are_not_finite_as_its_plain_form(max_ratio, monkeypatch):
    results = []
    for has_kernels in (False, True):
        monkeypatch.setattr(famx.kernels, "available", lambda device, value=has_kernels: value)
        weights = torch.ones(6, 4, device=DEVICE)
        weights[3] = torch.inf
        weights[4] = torch.nan
        weights[5] = 0.0
        p = nn.Parameter(weights)
        p.grad = torch.ones(6, 4, device=DEVICE)
        p.grad[0, 1] = torch.nan
        p.grad[1, 2] = torch.inf
        p.grad[2, 2] = -torch.inf
        scalar = nn.Parameter(torch.zeros((), device=DEVICE))
        scalar.grad = torch.zeros((), device=DEVICE)
        norms = clip_by_unit_norm([p, scalar], max_ratio)
        results.append((norms, p.grad, scalar.grad))
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.usefixtures("with_kernels")
def test_clipping_of_parameters_without_gradients_returns_zeros():
    params = [torch.ones(3, device=DEVICE), torch.ones(2, 2, device=DEVICE)]
    assert clip_by_unit_norm(params, 0.1).tolist() == [0.0, 0.0]
