"""Before torch's own optimizers: their fused kernels where the device has them, and plain refusals."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from famx.notation import UserError
from famx.optim._common import dense, keep_dtypes, refuse_complex
from famx.validate import check_number


class TorchOptimizer(torch.optim.Optimizer):
    """Before one of torch's own optimizers: takes its fused kernel, if it `fuses`, and refuses a momentum rule."""

    exempt: ClassVar[dict[str, str]] = {
        "meta": "torch's fused kernels have no meta form",
        "no_host_read": "torch's own step may read the learning rate and the step count",
        "non_finite": "torch's own step takes every gradient",
    }
    observed = False
    fuses = False

    def __init__(self, params: Any, *rules: Callable[..., nn.Module] | None, **options: Any):
        if any(rules):
            name = type(self).__name__
            raise UserError(
                f"{name} has one momentum for all tensors: momentum= and spectrum= are for optim=fam and its kin"
            )
        for name, value in options.items():
            check_number(name, value)
        self.metrics: dict[str, Tensor] = {}
        groups = torch.optim.Optimizer(params, {}).param_groups
        tensors = [p for group in groups for p in group["params"]]
        refuse_complex(tensors, type(self).__name__)
        if self.fuses:
            self.fuses = all(p.device.type in ("cpu", "cuda", "mps", "xpu") for p in tensors)
            options["fused"] = self.fuses
        super().__init__(groups, **options)
        # a GradScaler would leave the scaled gradients to the fused kernel, and that is not always the one that runs
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; `closure`, if given, computes the loss anew, which is returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        given = [p for group in self.param_groups for p in group["params"] if dense(p) is not None]
        if self.fuses:
            # torch's fused kernels walk through memory and do not look at strides
            fused = all(p.is_contiguous() and p.grad.is_contiguous() for p in given)
            for group in self.param_groups:
                group["fused"] = fused
        super().step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        super().load_state_dict(dict(state_dict))
        keep_dtypes(self, state_dict)
