"""Base of torch's own optimizers in famx: fused kernels if possible, and clear errors."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.notation import UserError
from famx.optim._gradients import dense_grad, require_real_floats
from famx.optim._kernels import FUSED_DEVICES
from famx.optim._rules import Factory
from famx.optim._state import getstate, keep_dtypes
from famx.validate import check_number


class TorchOptimizer(torch.optim.Optimizer):
    """Base class that precedes one of torch's: `class SGD(TorchOptimizer, torch.optim.SGD)`.

    Args:
        params: parameters or groups.
        options: keyword arguments of torch's optimizer.
        momentum: must be None, since torch's optimizers have one momentum for all tensors.
        spectrum: must be None, too.

    Attributes:
        has_fused_kernel: whether torch's optimizer has one kernel for all tensors (`fused=True`).
    """

    exempt: ClassVar[dict[str, str]] = {
        "meta": "torch's fused kernels have no meta form",
        "no_host_read": "torch's own step may read the learning rate and the step count",
        "non_finite": "torch's own step takes every gradient",
    }
    has_fused_kernel = False

    def __init__(
        self,
        params: ParamsT,
        options: Mapping[str, Any],
        momentum: Factory | None = None,
        spectrum: Factory | None = None,
    ):
        if momentum is not None or spectrum is not None:
            raise UserError(
                f"{type(self).__name__} has one momentum for all tensors and takes neither a "
                "momentum rule nor a spectrum; optim=fam_adamw (AdamW) and optim=ema_sgd (SGD) do"
            )
        for name, value in options.items():
            check_number(name, value)
        self.observed = False
        self.metrics: dict[str, Tensor] = {}
        # converts parameters to groups, to check the tensors before torch's constructor runs
        groups = torch.optim.Optimizer(params, {}).param_groups
        tensors = [p for group in groups for p in group["params"]]
        require_real_floats(tensors, type(self).__name__)
        self.fused = self.has_fused_kernel and all(p.device.type in FUSED_DEVICES for p in tensors)
        if self.has_fused_kernel:
            options = {**options, "fused": self.fused}
        super().__init__(groups, **options)
        # a GradScaler leaves the unscaling to fused kernels, but these are not always used
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            The loss that `closure` returns, None without one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        # dense gradients, checked before any parameter changes
        pairs = []
        for group in self.param_groups:
            for p in group["params"]:
                gradient = dense_grad(p)
                if gradient is not None:
                    pairs.append((p, gradient))
        if self.fused:
            # torch's fused kernels ignore strides
            fused = all(p.is_contiguous() and gradient.is_contiguous() for p, gradient in pairs)
            for group in self.param_groups:
                group["fused"] = fused
        super().step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned."""
        super().load_state_dict(dict(state_dict))
        keep_dtypes(self, state_dict)

    __getstate__ = getstate
