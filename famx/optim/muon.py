"""Muon of torch for matrices, AdamW for the rest (Jordan et al. 2024; arXiv:2502.16982)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.notation import UserError
from famx.optim._gradients import dense_grad, require_real_floats
from famx.optim._state import getstate
from famx.optim._torch import TorchOptimizer
from famx.optim.adamw import AdamW
from famx.registry import register


@register
class Muon(torch.optim.Optimizer):
    """m <- alpha·m + (1 - alpha)·g; θ <- θ - lr·(.2·sqrt(longer side)·O + weight_decay·θ).

    O is the matrix nearest to m (with Nesterov momentum) whose singular values are all about 1.
    Embeddings and tensors that are not matrices are updated by AdamW with the same lr, since the
    factor gives both steps the same size.

    Args:
        params: parameters or groups; all of a group with `kind` "embedding" is updated by AdamW.
        lr: learning rate.
        weight_decay: share of a parameter that is subtracted per step, times lr.
        alpha: momentum of matrices, in [0, 1).
        nesterov: whether to use Nesterov momentum.
        ns_steps: Newton-Schulz iterations towards O.
        betas, eps: options of AdamW.
    """

    exempt: ClassVar[dict[str, str]] = TorchOptimizer.exempt

    def __init__(
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
    ):
        if not 0 <= alpha < 1 or ns_steps < 1:
            raise ValueError(f"alpha={alpha} must be in [0, 1), ns_steps={ns_steps} at least 1")
        self.observed = False
        self.metrics: dict[str, Tensor] = {}
        # each group is split into matrices and other tensors
        muon_groups = []
        adamw_groups = []
        for group in torch.optim.Optimizer(params, {}).param_groups:
            require_real_floats(group["params"], "Muon")
            matrices: list[Tensor] = []
            non_matrices: list[Tensor] = []
            for p in group["params"]:
                is_matrix = p.ndim == 2 and group.get("kind") != "embedding"
                (matrices if is_matrix else non_matrices).append(p)
            muon_groups.append({**group, "params": matrices, "orthogonal": True})
            adamw_groups.append({**group, "params": non_matrices, "orthogonal": False})
        self.muon = torch.optim.Muon(
            muon_groups,
            lr=lr,
            weight_decay=weight_decay,
            momentum=alpha,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = AdamW(adamw_groups, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        # the groups of both, with the defaults that torch has added
        groups = [*self.muon.param_groups, *self.adamw.param_groups]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
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

    __getstate__ = getstate

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            The loss that `closure` returns, None without one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        # refuses sparse gradients before a parameter has moved
        for group in self.param_groups:
            for p in group["params"]:
                dense_grad(p)
        self.muon.step()
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned."""
        # torch replaces the groups and the state, so both optimizers need the new ones
        super().load_state_dict(dict(state_dict))
        self._share_state()
