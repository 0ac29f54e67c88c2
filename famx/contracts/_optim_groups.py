"""Guarantees of the options of every optimizer: they act, and those of a group override them."""

import torch
from torch import nn
from torch.optim import Optimizer

from famx.contracts import _steps as steps
from famx.contracts import require
from famx.registry import hyperparameters


def obeys_parameter_groups(part: type[Optimizer]) -> None:
    """The learning rate of a group overrides that of the optimizer."""
    params = steps.make_parameters()
    initial_params = steps.make_parameters()
    groups: list[dict[str, object]] = [{"params": params[:3], "lr": 0.0}, {"params": params[3:]}]
    steps.take_steps(steps.build(part, groups, lr=0.1), params, list(steps.random_gradients(9)))
    pairs = zip(params, initial_params, strict=True)
    moved = [not torch.equal(p, initial) for p, initial in pairs]
    require(
        moved == [False] * 3 + [True] * 3,
        f"lr=0 for the first three of six parameters, but these move: {moved}",
    )


def decays_the_weights(part: type[Optimizer]) -> None:
    """Its hyperparameter `weight_decay`, if it has one, acts; that of a group overrides it."""
    if "weight_decay" not in hyperparameters(part):
        return

    # the first three of six parameters form a group with options of its own
    def parameters_after(decay: float, **options: float) -> list[nn.Parameter]:
        params = steps.make_parameters()
        first: dict[str, object] = {"params": params[:3], **options}
        groups: list[dict[str, object]] = [first, {"params": params[3:]}]
        optimizer = steps.build(part, groups, lr=0.1, weight_decay=decay)
        steps.take_steps(optimizer, params, list(steps.random_gradients(9)))
        return params

    # without decay, with it, and with it except in the first group
    plain = parameters_after(0.0)
    decayed = parameters_after(0.1)
    mixed = parameters_after(0.1, weight_decay=0.0)
    require(not steps.all_equal(plain, decayed), "weight_decay=0.1 changes nothing")
    for p, expected in zip(mixed, [*plain[:3], *decayed[3:]], strict=True):
        require(
            torch.allclose(p, expected, atol=1e-6),
            "weight_decay=0.1 overrides the weight_decay=0 of a group",
        )


def maximizes(part: type[Optimizer]) -> None:
    """Its hyperparameter `maximize`, if it has one, takes the steps of the negative loss."""
    if "maximize" not in hyperparameters(part):
        return
    gradients = list(steps.random_gradients())
    minimized = steps.make_parameters()
    groups: list[dict[str, object]] = [{"params": minimized, "weight_decay": 0.1}]
    steps.take_steps(steps.build(part, groups, lr=0.1), minimized, gradients)
    # all parameters by the constructor's argument, and the first three by that of their group
    for n_maximized, option in ((len(minimized), True), (3, False)):
        params = steps.make_parameters()
        first: dict[str, object] = {"params": params[:n_maximized], "weight_decay": 0.1}
        groups = [first]
        if not option:
            first["maximize"] = True
            groups.append({"params": params[n_maximized:], "weight_decay": 0.1})
        negated = []
        for row in gradients:
            ascents = [-gradient for gradient in row[:n_maximized]]
            negated.append([*ascents, *row[n_maximized:]])
        steps.take_steps(steps.build(part, groups, lr=0.1, maximize=option), params, negated)
        where = "" if option else " of a group"
        require(
            steps.all_equal(minimized, params),
            f"maximize{where} takes other steps than the negative loss",
        )
