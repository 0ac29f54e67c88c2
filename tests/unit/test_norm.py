"""Norms against their formulas."""

import torch
from torch.testing import assert_close

from famx.registry import build


def test_norms_equal_their_formulas():
    x = torch.randn(2, 5, 6)
    rmsnorm = build("norm", {"name": "rmsnorm", "eps": 0.5}, d_model=6)
    assert_close(rmsnorm(x), x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt())
    layernorm = build("norm", {"name": "layernorm", "eps": 0.5}, d_model=6)
    centred = x - x.mean(-1, keepdim=True)
    assert_close(layernorm(x), centred / (centred.square().mean(-1, keepdim=True) + 0.5).sqrt())
