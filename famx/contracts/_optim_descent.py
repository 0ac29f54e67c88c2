"""Guarantees of every optimizer: at some learning rate it descends on four kinds of loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from famx.contracts import ContractError
from famx.contracts._steps import build


def descends_on_a_quadratic(part: type[Optimizer]) -> None:
    """At some learning rate, 200 steps reach 5 % of the loss `|p - target|^2`."""
    target = torch.linspace(-1, 1, 300).view(20, 15)
    # a step in units of the size of the parameter has to grow from zero first
    require_descent(
        part, [torch.zeros(20, 15)], lambda p: (p[0] - target).square().sum(), 0.05, steps=200
    )


def descends_in_a_narrow_valley(part: type[Optimizer]) -> None:
    """At some learning rate, steps reach 10 % of a quadratic loss of condition number 100."""
    # curvatures from 1 to 100
    scale = torch.logspace(0, 2, 20)
    require_descent(part, [torch.ones(20)], lambda p: (scale * p[0].square()).sum(), 0.1)


def descends_on_a_logistic_regression(part: type[Optimizer]) -> None:
    """At some learning rate, steps halve the loss of two separable classes."""
    # zero parameters give the loss log(2), whatever the data are
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 10, generator=generator)
    y = (x.sum(1) > 0).float()
    loss = nn.functional.binary_cross_entropy_with_logits
    start = [torch.zeros(10), torch.zeros(())]
    require_descent(part, start, lambda p: loss(x @ p[0] + p[1], y), 0.5)


def descends_on_a_network(part: type[Optimizer]) -> None:
    """At some learning rate, a network reaches 60 % of its loss on the sign of a product."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator)
    # classes that no linear map separates
    y = (x[:, 0] * x[:, 1] > 0).long()
    loss = nn.functional.cross_entropy
    shapes = ((2, 32), (32,), (32, 2), (2,))
    start = [torch.randn(shape, generator=generator) / 2 for shape in shapes]
    require_descent(part, start, lambda p: loss((x @ p[0] + p[1]).tanh() @ p[2] + p[3], y), 0.6)


def require_descent(
    part: type[Optimizer],
    start: Sequence[Tensor],
    loss_of: Callable[[Sequence[Tensor]], Tensor],
    share: float,
    steps: int = 150,
) -> None:
    """Requires that at some learning rate `steps` steps leave at most `share` of the loss."""
    shares = {}
    # update rules differ in the learning rates they need; most descend at the first
    for lr in (0.01, 0.1, 1.0, 0.001):
        params = [nn.Parameter(value.clone()) for value in start]
        optimizer = build(part, params, lr=lr)
        initial = loss_of(params).item()
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(params).backward()
            optimizer.step()
        shares[lr] = loss_of(params).item() / initial
        if shares[lr] <= share:
            return
    # no learning rate is enough: the message has the share of each
    results = ", ".join(f"{value:.3g} with lr={lr}" for lr, value in shares.items())
    raise ContractError(
        f"does not descend to {share} of the loss in {steps} steps, but to {results}"
    )
