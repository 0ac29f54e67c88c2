"""Muon of torch for matrices, AdamW for the rest (Jordan et al. 2024; arXiv:2502.16982)."""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.notation import UserError
from famx.optim._gradients import require_real_floats
from famx.optim._state import Group
from famx.optim._torch import TorchOptimizer
from famx.optim.adamw import AdamW
from famx.registry import register

# of the Newton-Schulz iteration, chosen by Jordan et al. to raise small singular values quickly
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


@register
class Muon(TorchOptimizer):
    """m <- alpha·m + (1 - alpha)·g; θ <- θ - lr·(.2·sqrt(longer side)·O + weight_decay·θ).

    O is the matrix nearest to m (with Nesterov momentum) whose singular values are all about 1.
    Embeddings and tensors that are not matrices are updated by AdamW with the same lr, since the
    factor gives both steps the same size.

    Args:
        params: parameters or groups; all of a group with `kind` "embedding" is updated by AdamW.
        lr: learning rate; famx's trainer, which clips gradients by unit, has a default of 1e-2.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        alpha: momentum of matrices, in [0, 1).
        nesterov: whether to use Nesterov momentum.
        ns_steps: Newton-Schulz iterations towards O.
        betas, eps: options of AdamW.
        maximize: whether to ascend along the gradient instead.
    """

    # dev losses of short runs on speech (two seeds; adamw: 1.400, 1.337): lr 2e-3 1.435, 1.401;
    # 5e-3 1.150, 1.095; 1e-2 1.106, 1.069; 2e-2 1.098, 1.067
    trainer_defaults: Mapping[str, Any] = {"lr": 1e-2}
    group_options = ("lr", "weight_decay", "nesterov", "ns_steps", "betas", "eps", "maximize")

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
        maximize: bool = False,
    ):
        if not 0 <= alpha < 1 or ns_steps < 1:
            raise ValueError(f"alpha={alpha} must be in [0, 1), ns_steps={ns_steps} at least 1")
        # each group is split into matrices and other tensors
        muon_groups = []
        adamw_groups = []
        for group in torch.optim.Optimizer(params, {}).param_groups:
            require_real_floats(group["params"], "Muon")
            may_have_matrices = group.get("kind") != "embedding"
            is_matrix = [p.ndim == 2 and may_have_matrices for p in group["params"]]
            is_other = [not flag for flag in is_matrix]
            muon_groups.append({**_select(group, is_matrix), "orthogonal": True})
            adamw_groups.append({**_select(group, is_other), "orthogonal": False})
        self.muon = torch.optim.Muon(
            muon_groups,
            lr=lr,
            weight_decay=weight_decay,
            momentum=alpha,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = AdamW(
            adamw_groups,
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
            maximize=maximize,
        )
        # the groups of both, with the defaults that torch has added
        groups = [*self.muon.param_groups, *self.adamw.param_groups]
        defaults = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(groups, {"defaults": defaults})
        self._share_state()

    def _share_state(self) -> None:
        """Shares this optimizer's groups and state with the two inside it."""
        self.muon.param_groups = [group for group in self.param_groups if group["orthogonal"]]
        self.adamw.param_groups = [group for group in self.param_groups if not group["orthogonal"]]
        self.muon.state = self.state
        self.adamw.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of the constructor, which has split it into matrices and other tensors.

        Raises:
            UserError: the group has not been split.
        """
        if "orthogonal" not in param_group:
            raise UserError("Muon sorts the parameters in its constructor: pass all groups there")
        super().add_param_group(param_group)

    def init(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        if group["orthogonal"]:
            return {"momentum_buffer": torch.zeros_like(param)}
        return self.adamw.init(param, group)

    def take_step(self, found_inf: Tensor) -> None:
        for group in self.muon.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p].update(self.init(p, group))
            if params:
                momenta = [self.state[p]["momentum_buffer"] for p in params]
                _step_matrices(params, momenta, group)
        # AdamW need not check its gradients again
        self.adamw.found_inf = found_inf
        self.adamw.step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned, see `TorchOptimizer`."""
        super().load_state_dict(state_dict)
        # torch replaces the groups and the state, so both optimizers need the new ones
        self._share_state()


def _step_matrices(params: Sequence[Tensor], momenta: Sequence[Tensor], group: Group) -> None:
    """Takes the step of `torch.optim.Muon` with one product for all matrices of a shape."""
    # m, and with Nesterov momentum the mean of m and the gradient
    gradients = [p.grad for p in params]
    if group["maximize"]:
        gradients = torch._foreach_neg(gradients)
    torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
    directions = momenta
    if group["nesterov"]:
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
    # weight decay
    lr = float(group["lr"])
    torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    # steps of equal size, by shape; tall matrices are transposed
    indices_by_shape: dict[tuple[Any, ...], list[int]] = {}
    for i, p in enumerate(params):
        indices_by_shape.setdefault((*sorted(p.shape), p.dtype, p.device), []).append(i)
    for indices in indices_by_shape.values():
        wide = [_transposed_if_tall(params[i]) for i in indices]
        stacked = torch.stack([_transposed_if_tall(directions[i]) for i in indices])
        orthogonal = orthogonalize(stacked, group["ns_steps"]).to(stacked.dtype)
        size = 0.2 * stacked.shape[-1] ** 0.5
        torch._foreach_add_(wide, list(orthogonal), alpha=-lr * size)


def orthogonalize(
    matrices: Float[Tensor, "n rows columns"], steps: int
) -> Float[Tensor, "n rows columns"]:
    """Replaces the singular values of wide matrices by values of about 1.

    X <- X / ‖X‖; then, `steps` times, X <- a·X + (b·G + c·G²)·X with G = X·Xᵀ (Newton-Schulz).

    Args:
        matrices: rows <= columns.
        steps: number of iterations.

    Returns:
        bfloat16 where the device computes in it, else the dtype of `matrices`.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if _computes_in_bfloat16(matrices.device) else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPS)
    for _ in range(steps):
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
