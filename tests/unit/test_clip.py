"""Gradients are clipped unit by unit, by the norms of the unit's own weights."""

import torch
from reference.clip import plain_clip

from famx.nn.clip import clip_by_unit_norm


def test_each_unit_is_bounded_by_its_weights():
    matrix = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]]))
    matrix.grad = torch.tensor([[0.03, 0.04], [6.0, 8.0], [0.0, 1.0]])
    kernel = torch.nn.Parameter(torch.ones(2, 3, 2, 2))
    kernel.grad = torch.ones(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    scalar = torch.nn.Parameter(torch.tensor(2.0))
    scalar.grad = torch.tensor(-8.0)
    bias = torch.nn.Parameter(torch.zeros(4))
    bias.grad = torch.zeros(4)
    without_gradient = torch.nn.Parameter(torch.ones(3))
    params = [matrix, kernel, scalar, bias]
    total = torch.cat([p.grad.flatten() for p in params]).norm()
    norms = clip_by_unit_norm([*params, without_gradient], 0.1)
    # norms of the gradients before the clip
    assert norms.norm() == total
    assert norms[1] == 24**0.5
    assert norms[4] == 0
    # the third row has no weights, so eps=1e-3 is assumed for both
    smallest = 0.1 * 1e-3 * 2**0.5
    expected = torch.tensor([[0.03, 0.04], [0.3, 0.4], [0.0, smallest]])
    torch.testing.assert_close(matrix.grad, expected)
    torch.testing.assert_close(kernel.grad, torch.full((2, 3, 2, 2), 0.1))
    assert scalar.grad == -0.2 * torch.ones(())
    assert not bias.grad.any()


def test_clip_equals_its_plain_form():
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (7,), (5, 4), (6, 3, 2), (4, 3, 5, 2), (9,), (), (3, 8), (1, 6)]
    params = [torch.randn(shape, generator=generator) for shape in shapes]
    # other dtypes, another memory order, weights and gradients of zeros, and no gradient
    params[2] = params[2].bfloat16()
    params[5] = params[5].double()
    params[4] = params[4].contiguous(memory_format=torch.channels_last)
    params[7][1] = 0.0
    for scale in (0.1, 10.0):
        for i, p in enumerate(params):
            if i != 3:
                p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)
        params[7].grad[2] = 0.0
        expected, expected_norms = plain_clip(params, 0.5)
        norms = clip_by_unit_norm(params, 0.5)
        torch.testing.assert_close(norms, torch.tensor(expected_norms, dtype=norms.dtype))
        for p, gradient in zip(params, expected, strict=True):
            assert (p.grad is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(p.grad, gradient.to(p.dtype))


def test_non_finite_entries_affect_their_unit_and_norm_only():
    matrix = torch.nn.Parameter(torch.ones(2, 3))
    matrix.grad = torch.tensor([[torch.nan, 0.0, 1.0], [0.0, 0.0, 4.0]])
    vector = torch.nn.Parameter(torch.ones(3))
    vector.grad = torch.ones(3)
    norms = clip_by_unit_norm([matrix, vector], 0.1)
    assert norms[0].isnan()
    assert norms[1] == 3**0.5
    torch.testing.assert_close(matrix.grad[1], torch.tensor([0.0, 0.0, 0.1 * 3**0.5]))
    assert matrix.grad[0].isnan().tolist() == [True, False, False]
