"""Base of torch's own optimizers in famx: fused kernels if possible, and clear errors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx.notation import UserError
from famx.optim._gradients import dense_grad, non_finite, require_real_floats
from famx.optim._kernels import FUSED_DEVICES
from famx.optim._param_groups import refuse_unused
from famx.optim._rules import Factory
from famx.optim._skipping import SkipWarning, is_set, unchanged_where
from famx.optim._state import (
    Group,
    Layout,
    check_layouts,
    check_state,
    check_tensor,
    getstate,
    keep_dtypes,
    match_names,
    split_shared,
    with_shared,
)
from famx.validate import check_number


class TorchOptimizer(torch.optim.Optimizer):
    """Base class that precedes one of torch's: `class SGD(TorchOptimizer, torch.optim.SGD)`.

    A step with a gradient that is not finite is skipped and counted in `skipped`. A caller that
    has checked the gradients can set `found_inf`, see `famx.optim.base.Optimizer`.

    Args:
        params: parameters or groups.
        options: keyword arguments of torch's optimizer.
        momentum: must be None, since torch's optimizers have one momentum for all tensors.
        spectrum: must be None, too.

    Attributes:
        has_fused_kernel: whether torch's optimizer has one kernel for all tensors (`fused=True`).
        reads_host: whether torch's step waits for the device anyway.
    """

    exempt: ClassVar[dict[str, str]] = {
        "meta": "torch's fused kernels have no meta form",
        "no_host_read": "torch's own step may read the learning rate and the step count",
    }
    has_fused_kernel = False
    reads_host = False

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
                "momentum rule nor a spectrum; optim=fam_adamw (AdamW), optim=ema_sgd (SGD) and "
                "optim=muon do"
            )
        for name, value in options.items():
            check_number(name, value)
        self.observed = False
        self.metrics: dict[str, Tensor] = {}
        self.found_inf: Tensor | None = None
        self.skipped = torch.zeros((), dtype=torch.long)
        self.skip_warning = SkipWarning(type(self).__name__)
        self.layouts: Sequence[Layout] = []
        # converts parameters to groups, to check the tensors before torch's constructor runs
        groups = torch.optim.Optimizer(params, {}).param_groups
        tensors = [p for group in groups for p in group["params"]]
        require_real_floats(tensors, type(self).__name__)
        self.fused = self.has_fused_kernel and all(p.device.type in FUSED_DEVICES for p in tensors)
        if self.has_fused_kernel:
            options = {**options, "fused": self.fused}
        for group in groups:
            refuse_unused(group, type(self), options)
        super().__init__(groups, **options)
        # a GradScaler leaves the unscaling to fused kernels, but these are not always used
        self._step_supports_amp_scaling = False

    def init(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        """Returns the state that torch's optimizer makes for a parameter in its first step."""
        raise NotImplementedError

    @torch._disable_dynamo  # torch's fused kernels cannot be traced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            The loss that `closure` returns, None without one.

        Raises:
            UserError: a gradient is sparse, or a parameter has changed its shape or dtype.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        # torch's own steps read this attribute too
        flag = self.found_inf
        self.found_inf = None
        # dense gradients, checked before any parameter changes
        params: list[Tensor] = []
        gradients: list[Tensor] = []
        all_params: list[Tensor] = []
        for group in self.param_groups:
            all_params += group["params"]
            for p in group["params"]:
                gradient = dense_grad(p)
                if gradient is not None:
                    params.append(p)
                    gradients.append(gradient)
        self.layouts = check_layouts(self, self.layouts, all_params)
        if not params:
            return loss
        # the step
        found_inf = non_finite(gradients, params) if flag is None else flag.float()
        is_fused = self._choose_kernel(params, gradients)
        if found_inf.device.type == "cpu" or self.reads_host:
            if not is_set(found_inf):
                self.take_step(found_inf)
        elif is_fused:
            self.found_inf = found_inf
            self.take_step(found_inf)
            self.found_inf = None
        else:
            with unchanged_where(found_inf, self._step_tensors(params)):
                self.take_step(found_inf)
        self._count(found_inf)
        return loss

    def take_step(self, found_inf: Float[Tensor, ""]) -> None:
        """Takes torch's step; the caller restores what must not change where `found_inf` is 1."""
        super().step()

    def _choose_kernel(self, params: list[Tensor], gradients: list[Tensor]) -> bool:
        """Returns whether the step uses torch's fused kernel, which ignores strides."""
        if not self.fused:
            return False
        tensors = [*params, *gradients]
        is_fused = all(map(Tensor.is_contiguous, tensors))
        for group in self.param_groups:
            group["fused"] = is_fused
        return is_fused

    def _step_tensors(self, params: list[Tensor]) -> list[Tensor]:
        """Returns the parameters and their state, which is made here in the first step."""
        has_gradient = set(params)
        tensors = list(params)
        for group in self.param_groups:
            for p in group["params"]:
                if p in has_gradient:
                    if not self.state[p]:
                        self.state[p].update(self.init(p, group))
                    tensors += self.state[p].values()
        return tensors

    def _count(self, found_inf: Float[Tensor, ""]) -> None:
        if self.skipped.device != found_inf.device:
            self.skipped = self.skipped.to(found_inf.device)
        self.skipped += found_inf.long()
        self.skip_warning.update(found_inf, self.skipped)
        if self.observed:
            self.metrics = {"skipped": self.skipped}

    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state_dict and, in its first group, the number of skipped steps."""
        return with_shared(super().state_dict(), {"skipped": self.skipped})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned, or that of torch's own optimizer.

        Parameters are matched by name where names are known on both sides, else by position.

        Raises:
            UserError: the state belongs to other parameters, or is not finite.
        """
        rest, shared = split_shared(state_dict, type(self).__name__)
        rest = match_names(self, rest)
        check_state(self, rest, self.init)
        skipped = shared.get("skipped", torch.zeros_like(self.skipped))
        check_tensor("skipped", skipped, self.skipped)
        super().load_state_dict(rest)
        keep_dtypes(self, rest, self.init)
        self.skipped = skipped.to(self.skipped.device, copy=True)

    __getstate__ = getstate
