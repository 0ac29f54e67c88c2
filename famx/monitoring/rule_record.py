"""Reads the decisions of an optimizer's momentum rule: base momentum, bands, and what fired."""

import torch
from jaxtyping import Float
from torch import Tensor

from famx.momentum.base import MomentumRule
from famx.nn.hooks import DecidesByBands, UsesMomentumRule


def rule_metrics(
    optimizer: torch.optim.Optimizer, coefficients: Float[Tensor, " tensors"]
) -> dict[str, Tensor]:
    """Returns the last decision of the optimizer's momentum rule for each tensor; {} without one.

    base: base momentum. fired: 1 if the coefficient is not the base, else 0.
    rule_bands (tensors, bands), of rules that decide by bands: the powers in their history, in
    units of white noise; NaN if a tensor has no such band or is not measured.

    Args:
        coefficients: momentum of each tensor, in the order of the optimizer's groups.
    """
    if not isinstance(optimizer, UsesMomentumRule):
        return {}
    rule = optimizer.rule
    if not isinstance(rule, MomentumRule):
        return {}
    base = rule.base.to(coefficients.device)
    metrics = {"base": base, "fired": (coefficients != base).to(coefficients.dtype)}
    if isinstance(rule, DecidesByBands) and rule.rows:
        measured = rule.decided_bands()
        bands = measured.new_full((len(base), measured.shape[1]), torch.nan)
        bands[rule.rows] = measured
        metrics["rule_bands"] = bands
    return metrics


def rule_band_names(optimizer: torch.optim.Optimizer, n_tensors: int) -> list[tuple[str, ...]]:
    """Returns the names of the bands by which the rule decides, none for tensors without bands."""
    names: list[tuple[str, ...]] = [()] * n_tensors
    if isinstance(optimizer, UsesMomentumRule) and isinstance(optimizer.rule, DecidesByBands):
        rule = optimizer.rule
        for row, of_tensor in zip(rule.rows, rule.band_names(), strict=True):
            names[row] = of_tensor
    return names
