"""Attention inside a band of positions against dense attention."""

import math

import pytest
import torch
from attention_blocks import example_masks
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from famx.attention import _soft_window
from famx.attention._banded import banded
from famx.attention._soft_window import attend_soft_window, shortest_and_longest
from famx.nn.masks import visible


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 90), (7, 7), (64, 64), (150, 150), (70, 200)])
@pytest.mark.parametrize("window", [1, 5, 100, 1000])
def test_a_band_equals_dense_attention_with_a_mask(window, t, s, causal):
    inputs = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (t, s, s)]
    q, k, v = inputs
    distance = torch.arange(s - t, s)[:, None] - torch.arange(s)
    near = distance.abs() < window
    if causal:
        near = near & (distance >= 0)
    for mask in example_masks(2, 3, t, s):
        dense_mask = near if mask is None else near & mask
        expected = scaled_dot_product_attention(q, k, v, dense_mask)
        y = banded(q, k, v, window, mask, causal)
        assert_close(y, expected)
        gradients = torch.autograd.grad(y.square().sum(), inputs)
        assert_close(gradients, torch.autograd.grad(expected.square().sum(), inputs))


@pytest.mark.parametrize("causal", [False, True])
def test_a_soft_band_weighs_keys_by_their_distance(causal):
    q, k, v = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (70, 90, 90)]
    reach = (20 * torch.rand(2, 3, 70)).requires_grad_()
    inputs = [q, k, v, reach]
    distance = (torch.arange(20, 90)[:, None] - torch.arange(90)).float()
    for mask in example_masks(2, 3, 70, 90):
        m = ((reach[..., None] + 8 - distance.abs()) / 8).clamp(0, 1)
        weights = m * (q @ k.mT / 8**0.5).exp()
        mask_now = visible(mask, 70, 90, causal, q.device)
        if mask_now is not None:
            weights = weights * mask_now
        expected = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9) @ v
        y = banded(q, k, v, 28, mask, causal, reach, ramp=8)
        assert_close(y, expected)
        gradients = torch.autograd.grad(y.square().sum(), inputs)
        assert_close(gradients, torch.autograd.grad(expected.square().sum(), inputs))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 90), (70, 90), (300, 300), (130, 200)])
@pytest.mark.parametrize("ramp", [1, 8])
def test_a_window_of_learned_width_equals_a_soft_band(ramp, t, s, causal):
    q, k, v = [torch.randn(2, 3, n, 8) for n in (t, s, s)]
    for longest in (0.0, 5.0, 120.0):
        reach = longest * torch.rand(2, 3, t)
        # whole numbers, at which the ramp begins at a position
        reach[0] = reach[0].round()
        window = math.ceil(shortest_and_longest(reach)[1]) + ramp
        for mask in example_masks(2, 3, t, s):
            expected = banded(q, k, v, 150, mask, causal, reach, ramp)
            assert_close(attend_soft_window(q, k, v, window, mask, causal, reach, ramp), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_of_learned_width_is_computed_for_some_samples_at_a_time(causal, monkeypatch):
    monkeypatch.setattr(_soft_window, "CACHE", 1)
    q, k, v = [torch.randn(2, 2, 200, 8) for _ in range(3)]
    reach = 40 * torch.rand(2, 2, 200)
    # a sample whose spans reach all keys needs no bias
    reach[1] = 250.0
    for mask in example_masks(2, 2, 200, 200):
        expected = banded(q, k, v, 258, mask, causal, reach, ramp=8)
        y = attend_soft_window(q, k, v, 258, mask, causal, reach, ramp=8)
        assert_close(y, expected)


def test_a_reach_that_is_not_finite_has_no_limits():
    assert shortest_and_longest(torch.tensor([[[3.0, torch.nan]]])) == (0, math.inf)
    assert shortest_and_longest(torch.tensor([[[3.0, 3.5]]])) == (3.0, 3.5)
