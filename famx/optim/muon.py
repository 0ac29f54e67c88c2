"""Muon, torch's own, for matrices; AdamW for the rest (Jordan et al. 2024; arXiv:2502.16982)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from famx.notation import UserError
from famx.optim._common import dense, refuse_complex, whole
from famx.optim._torch import TorchOptimizer
from famx.optim.adamw import AdamW
from famx.registry import register


@register
class Muon(torch.optim.Optimizer):
    """m <- alpha·m + (1 - alpha)·g; θ <- θ - lr·(.2·sqrt(longer side)·O + weight_decay·θ), O the nearest to
    m, with Nesterov's look ahead, whose singular values are all about 1. Vectors, scalars, tensors of more axes and
    embeddings: AdamW, with the same lr, which the factor makes alike.

    Args:
        params: parameters or groups; of one with `kind` "embedding" matrices too get AdamW.
        lr: learning rate.
        weight_decay: share of a parameter taken away per step, times lr.
        alpha: momentum of matrices, in [0, 1).
        nesterov: whether to look ahead.
        ns_steps: Newton-Schulz iterations towards O.
        betas, eps: of AdamW.
    """

    exempt: ClassVar[dict[str, str]] = TorchOptimizer.exempt
    observed = False

    def __init__(
        self,
        params: Any,
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
        self.metrics: dict[str, Tensor] = {}
        matrices, rest = [], []
        for group in torch.optim.Optimizer(params, {}).param_groups:
            refuse_complex(group["params"], "Muon")
            flat = [p.ndim == 2 and group.get("kind") != "embedding" for p in group["params"]]
            for some, chosen in ((matrices, True), (rest, False)):
                own = [
                    p for p, is_flat in zip(group["params"], flat, strict=True) if is_flat is chosen
                ]
                some.append({**group, "params": own, "orthogonal": chosen})
        options = {"lr": lr, "weight_decay": weight_decay}
        self.muon = torch.optim.Muon(
            matrices,
            **options,
            momentum=alpha,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = AdamW(rest, **options, betas=betas, eps=eps)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], options)
        self.share()

    def share(self) -> None:
        """Lets both work on the groups and the state of this."""
        self.muon.param_groups = [group for group in self.param_groups if group["orthogonal"]]
        self.adamw.param_groups = [group for group in self.param_groups if not group["orthogonal"]]
        self.muon.state = self.adamw.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "orthogonal" not in param_group:
            raise UserError("Muon sorts the tensors it begins with: give all groups at the start")
        super().add_param_group(param_group)

    __getstate__ = whole

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes one step; `closure`, if given, computes the loss anew, which is returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                dense(p)
        self.muon.step()
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.share()
