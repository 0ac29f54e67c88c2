"""Muon: orthogonal steps of matrices, AdamW for all else (Jordan et al. 2024; arXiv:2502.16982)."""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.optim._kernels import average, descend
from famx.optim._param_groups import refuse_unused
from famx.optim._rules import Factory
from famx.optim._state import all_params
from famx.optim.base import Group, GroupUpdate, Update
from famx.optim.fam_adamw import FAMAdamW
from famx.registry import register

# of the Newton-Schulz iteration, chosen by Jordan et al. to raise small singular values quickly
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
GROUP_OPTIONS = ("lr", "eps", "weight_decay", "n_bands", "maximize")


@register
class Muon(FAMAdamW):
    """m <- a·m + (1-a)·g; θ <- θ - lr·(.2·sqrt(longer side)·O + weight_decay·θ).

    O is the matrix nearest to m whose singular values are all about 1; with Nesterov momentum, the
    one nearest to a·m + (1-a)·g. All matrices of a shape are computed together. Embeddings and
    tensors that are not matrices are updated by AdamW with the same lr, since the factor gives both
    steps the same size. The default rule is `constant`.

    Args:
        params: parameters or groups; all of a group with `kind` "embedding" is updated by AdamW.
        lr: learning rate; famx's trainer has a default of 5e-3.
        weight_decay: share of a parameter that is subtracted per step, times lr; famx's trainer has
            a default of .3.
        alpha: base momentum a of matrices, in [0, 1).
        nesterov: whether to use Nesterov momentum.
        ns_steps: Newton-Schulz iterations towards O.
        betas: base momentum and decay of the average of g² of AdamW, in [0, 1).
        eps: added to AdamW's square root.
        n_bands: number of bands of the spectrum, if the rule measures one.
        maximize: whether to ascend along the gradient instead.
        rules: factories `momentum` and `spectrum`, see `Optimizer`.
    """

    default_rule: Mapping[str, Any] = {"name": "constant"}
    # chosen on dev, see "Muon or AdamW?" in docs/results.md
    trainer_defaults: Mapping[str, Any] = {"lr": 5e-3, "weight_decay": 0.3}

    def __init__(  # noqa: PLR0913
        self,
        params: ParamsT,
        *,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        alpha: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        n_bands: int = 8,
        maximize: bool = False,
        **rules: Factory | None,
    ):
        if not 0 <= alpha < 1 or ns_steps < 1:
            raise ValueError(f"alpha={alpha} must be in [0, 1), ns_steps={ns_steps} at least 1")
        self.nesterov = nesterov
        self.ns_steps = ns_steps
        # each group is split into matrices and other tensors, which have another momentum
        groups = []
        for group in torch.optim.Optimizer(params, {}).param_groups:
            refuse_unused(group, type(self), GROUP_OPTIONS)
            kind = group.get("kind", "other")
            may_have_matrices = kind != "embedding"
            is_matrix = [p.ndim == 2 and may_have_matrices for p in group["params"]]
            for orthogonal, momentum in ((True, alpha), (False, betas[0])):
                part = _select(group, [flag is orthogonal for flag in is_matrix])
                if part["params"]:
                    groups.append(
                        {**part, "kind": kind, "orthogonal": orthogonal, "alpha": momentum}
                    )
        super().__init__(
            groups,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            n_bands=n_bands,
            maximize=maximize,
            **rules,
        )
        # a group's own momentum would have no effect, so it is no option
        del self.defaults["alpha"]
        of_matrices = [group for group in self.param_groups if group["orthogonal"]]
        self.matrices = set(all_params(of_matrices))

    def init(self, param: Tensor) -> dict[str, Tensor]:
        state = super().init(param)
        if param in self.matrices:
            del state["exp_avg_sq"]
        return state

    def update(self, group: Group, updates: Sequence[Update], found_inf: Tensor) -> None:
        if not group["orthogonal"]:
            super().update(group, updates, found_inf)
            return
        # m, and with Nesterov momentum a·m + (1 - a)·g
        gradients = [u.gradient for u in updates]
        directions = [u.state["exp_avg"] for u in updates]
        # torch declares lists of numbers, and takes tensors on a device too
        momenta: list[Any] = [u.momentum for u in updates]
        new_weights = [1 - a for a in momenta]
        average(directions, gradients, new_weights, found_inf)
        if self.nesterov:
            weighted = torch._foreach_mul(directions, momenta)
            new = torch._foreach_mul(gradients, new_weights)
            directions = list(torch._foreach_add(weighted, new))
        # the step
        steps = orthogonal_steps(directions, self.ns_steps)
        params = [u.param for u in updates]
        descend(params, steps, group["lr"], group["weight_decay"], found_inf)

    def update_group(self, group: Group, update: GroupUpdate, found_inf: Tensor) -> None:
        if group["orthogonal"]:
            self.update(group, update.split(), found_inf)
        else:
            super().update_group(group, update, found_inf)


def orthogonal_steps(
    matrices: Sequence[Float[Tensor, "_ _"]], ns_steps: int
) -> list[Float[Tensor, "_ _"]]:
    """Returns .2·sqrt(longer side)·O for each matrix, contiguous and in its dtype.

    Args:
        ns_steps: Newton-Schulz iterations towards O.
    """
    # wide matrices of one shape are stacked, and tall ones with their transposes
    indices_by_shape: dict[tuple[Any, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        indices_by_shape.setdefault((*sorted(matrix.shape), matrix.dtype), []).append(i)
    steps = list(matrices)
    for indices in indices_by_shape.values():
        stacked = torch.stack([_transposed_if_tall(matrices[i]) for i in indices])
        scaled = orthogonalize(stacked, ns_steps).to(stacked.dtype)
        scaled *= 0.2 * stacked.shape[-1] ** 0.5
        for i, step in zip(indices, scaled, strict=True):
            is_tall = matrices[i].shape[0] > matrices[i].shape[1]
            steps[i] = step.mT.contiguous() if is_tall else step
    return steps


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"], ns_steps: int
) -> Float[Tensor, "n rows columns"]:
    """Replaces the singular values of wide matrices by values of about 1.

    X <- X / ‖X‖; then, `ns_steps` times, X <- a·X + (b·G + c·G²)·X with G = X·Xᵀ (Newton-Schulz).

    Args:
        matrices: rows <= columns.
        ns_steps: number of iterations.

    Returns:
        bfloat16 where the device computes in it, else the dtype of `matrices`.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if _computes_in_bfloat16(matrices.device) else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPS)
    for _ in range(ns_steps):
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)
    return x


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Returns whether products in bfloat16 are no slower than in single precision."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def _transposed_if_tall(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _select(group: Group, flags: Sequence[bool]) -> Group:
    """Returns a group of those parameters whose flag is True, with their names."""
    selected = {**group}
    for key in ("params", "param_names"):
        if key in group:
            selected[key] = list(compress(group[key], flags))
    return selected
