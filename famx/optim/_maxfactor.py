"""MaxFactor's step by kernels."""

from jaxtyping import Float
from torch import Tensor

from famx.kernels.tensor_table import supports
from famx.optim._kernels import contiguous
from famx.optim._update import Group, GroupUpdate


def has_kernels(group: Group, update: GroupUpdate, full_matrix: bool, magnitude: str) -> bool:
    """Returns whether kernels can take the step of a group of MaxFactor."""
    if full_matrix or magnitude == "median" or group["clip"] is not None:
        return False
    return supports(update.params, update.gradients)


def step_by_kernels(
    group: Group, update: GroupUpdate, found_inf: Float[Tensor, ""], magnitude: str
) -> None:
    """Averages gradients that have a momentum, and takes the step of a group in a few launches."""
    from famx.kernels import maxfactor, multi_tensor

    # a tensor without momentum has no average, and is skipped like one without a gradient
    momenta = update.state("exp_avg")
    gradients = list(update.gradients)
    if any(m is not None for m in momenta):
        averages = [p if m is None else m for p, m in zip(update.params, momenta, strict=True)]
        new = [None if m is None else g for g, m in zip(gradients, momenta, strict=True)]
        multi_tensor.average(averages, new, 1 - update.momentum, found_inf)
        gradients = [g if m is None else m for g, m in zip(gradients, momenta, strict=True)]

    # V of a vector is read like R
    rows = [state.get("exp_avg_sq_row", state.get("exp_avg_sq")) for state in update.states]
    columns = update.state("exp_avg_sq_col")
    options = maxfactor.Options(
        beta2_decay=float(group["beta2_decay"]),
        floor=float(group["eps"][0]) ** 2,
        min_size=float(group["eps"][1]),
        clip_threshold=float(group["clip_threshold"]),
        weight_decay=float(group["weight_decay"]),
        gamma=float(group["gamma"]),
        min_lr=float(group["min_lr"]),
        per_row=magnitude == "row",
    )
    with contiguous(update.params) as params:
        maxfactor.step(
            params, gradients, (rows, columns), update.step, group["lr"], found_inf, options
        )
