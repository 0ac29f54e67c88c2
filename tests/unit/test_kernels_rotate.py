"""The kernel of rotary embeddings equals its plain form, forward and backward."""

import pytest
import torch

import famx.kernels
from famx.kernels.rotate import supports
from famx.registry import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# NumPy, which computes for the interpreter, warns where a GPU returns inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def rotated(x, weights, offset, enabled, monkeypatch, name="rope"):
    """Returns the rotated channels and the gradient of their weighted sum."""
    monkeypatch.setattr(famx.kernels, "available", lambda device: enabled)
    x = x.detach().requires_grad_()
    y = build("rotary", {"name": name}, head_dim=x.shape[-1])(x, offset)
    (y * weights).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (1, 2, 70, 48), (2, 1, 1, 2), (0, 2, 4, 4)])
def test_rotations_equal_their_plain_form(shape, dtype, monkeypatch):
    x = torch.randn(shape).to(DEVICE, dtype)
    weights = torch.randn(shape).to(DEVICE, dtype)
    expected = rotated(x, weights, 3, False, monkeypatch)
    results = rotated(x, weights, 3, True, monkeypatch)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(results, expected, rtol=tolerance, atol=tolerance)


def test_heads_that_are_views_are_rotated_where_they_lie(monkeypatch):
    # queries, keys and values of two heads in one tensor, as a projection returns them
    projected = torch.randn(2, 7, 3 * 16, device=DEVICE)
    x = projected[..., 16:32].unflatten(-1, (2, 8)).transpose(1, 2)
    weights = torch.randn(x.shape, device=DEVICE)
    expected = rotated(x, weights, 0, False, monkeypatch)
    results = rotated(x, weights, 0, True, monkeypatch)
    torch.testing.assert_close(results, expected, rtol=1e-6, atol=1e-6)


def test_learned_and_partial_rotations_keep_the_plain_form():
    table = torch.polar(torch.ones(5, 4), torch.randn(5, 4))
    x = torch.randn(1, 1, 5, 8)
    assert supports(x, table)
    assert not supports(x, table.requires_grad_())
    # an odd last channel passes unrotated
    assert not supports(torch.randn(1, 1, 5, 9), table.detach())
    assert not supports(x.double(), table.detach())
