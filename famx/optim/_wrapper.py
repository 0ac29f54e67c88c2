"""Base of optimizers that wrap another one: they share its state and act around its step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from famx import registry
from famx.nn.hooks import Observed, SkipsNonFinite, UsesMomentumRule
from famx.notation import UserError
from famx.optim._gradients import dense_grad, is_capturing
from famx.optim._param_groups import refuse_unused
from famx.optim._rules import Factory
from famx.optim._state import (
    Layout,
    all_params,
    check_layouts,
    check_param_state,
    getstate,
    match_names,
    split_shared,
    with_shared,
)


class Wrapper(torch.optim.Optimizer):
    """Wraps a base optimizer: a step calls `before`, the step of the base, and `after`.

    Args:
        params: an optimizer, which becomes the base, or parameters or groups to build it for.
        momentum: factory of the momentum rule, for a base that is built here.
        spectrum: factory of the spectrum that this rule measures.
        base: name of the optimizer to build.
        lr: learning rate of that optimizer; None for its default.
        maximize: whether that optimizer ascends along the gradient.

    Attributes:
        wrapper_state: parameter -> named tensors of the wrapper, saved and loaded with the state of
            the base.
        calls: steps taken so far.
        rule: the base's momentum rule, if it has one.
        skipped: number of steps that the base has skipped, if it skips non-finite gradients.
    """

    exempt: ClassVar[dict[str, str]] = {
        "meta": "its default base, torch's AdamW, has no meta form",
        "no_host_read": "its default base, torch's AdamW, may read the learning rate and steps",
    }

    def __init__(
        self,
        params: ParamsT | torch.optim.Optimizer,
        momentum: Factory | None = None,
        spectrum: Factory | None = None,
        *,
        base: str = "adamw",
        lr: float | None = None,
        maximize: bool = False,
    ):
        rules: dict[str, Factory] = {}
        if momentum is not None:
            rules["momentum"] = momentum
        if spectrum is not None:
            rules["spectrum"] = spectrum
        # the base: one that exists, or a new one
        if isinstance(params, torch.optim.Optimizer):
            if rules or lr is not None or maximize:
                raise UserError(
                    f"{type(self).__name__} wraps an optimizer that exists: "
                    "set lr, maximize, momentum and spectrum on that one"
                )
            self.base = params
        else:
            self.base = _build_base(base, lr, maximize, params, rules)
        for group in self.base.param_groups:
            refuse_unused(group, type(self), self.base.defaults)
        self.calls = 0
        self.layouts: Sequence[Layout] = []
        self.wrapper_state: dict[Tensor, dict[str, Tensor]] = {}
        super().__init__(self.base.param_groups, self.base.defaults)
        self.adopt_base_state()

    def adopt_base_state(self) -> None:
        """Shares the groups, the state, the rule and `skipped` of the base."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        # attributes and not properties, since a protocol check only tests that attributes exist
        if isinstance(self.base, UsesMomentumRule):
            self.rule = self.base.rule
        self.skipping_base: SkipsNonFinite | None = None
        if isinstance(self.base, SkipsNonFinite):
            self.skipping_base = self.base
            self.skipped = self.base.skipped

    def init_wrapper(self, param: Tensor) -> dict[str, Tensor]:
        """Returns the wrapper's own initial state of a parameter."""
        return {}

    def before(self, params: list[Tensor]) -> None:
        """Called before the base's step, with the parameters that have a gradient."""

    def after(self, params: list[Tensor], stepped: float | Tensor) -> None:
        """Called after the base's step; `stepped` is 0 if the base has skipped it, else 1."""

    @torch._disable_dynamo  # the base may have fused kernels, which cannot be traced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            The loss that `closure` returns, None without one.

        Raises:
            UserError: a CUDA graph is being captured.
        """
        if is_capturing():
            raise UserError(
                f"{type(self).__name__}.step counts on the host: "
                "capture the step of its base optimizer instead"
            )
        loss = None if closure is None else torch.enable_grad()(closure)()
        params = [
            p for group in self.param_groups for p in group["params"] if dense_grad(p) is not None
        ]
        self.layouts = check_layouts(self, self.layouts, all_params(self.param_groups))
        self.calls += 1
        # a base that never skips a step
        base = self.skipping_base
        if base is None:
            self.before(params)
            self.base.step()
            self.after(params, 1.0)
            return loss
        # the device knows whether the base skips, so `stepped` is a tensor there
        skipped_before = base.skipped.clone()
        self.before(params)
        self.base.step()
        self.skipped = base.skipped
        self.after(params, 1.0 - (self.skipped - skipped_before))
        return loss

    @property
    def observed(self) -> bool:
        return isinstance(self.base, Observed) and self.base.observed

    @observed.setter
    def observed(self, observed: bool) -> None:
        if isinstance(self.base, Observed):
            self.base.observed = observed

    @property
    def metrics(self) -> dict[str, Tensor]:
        return self.base.metrics if isinstance(self.base, Observed) else {}

    @property
    def capturable(self) -> bool:
        return False

    @capturable.setter
    def capturable(self, capturable: bool) -> None:
        raise UserError(
            f"capturable={capturable} is not possible with {type(self).__name__}: "
            "set it on its base optimizer and capture that"
        )

    @property
    def found_inf(self) -> Tensor | None:
        return None if self.skipping_base is None else self.skipping_base.found_inf

    @found_inf.setter
    def found_inf(self, flag: Tensor | None) -> None:
        # torch's own optimizers would read it in every later step
        if self.skipping_base is None:
            raise AttributeError(f"{type(self.base).__name__} does not support found_inf")
        self.skipping_base.found_inf = flag

    __getstate__ = getstate

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base; torch's constructor calls it with the base's own groups."""
        if any(param_group is group for group in self.base.param_groups):
            super().add_param_group(param_group)
        else:
            refuse_unused(param_group, type(self), self.base.defaults)
            self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Returns the base's state_dict and, under the class's name, the wrapper's own state.

        Its tensors are part of the state of each parameter, its steps of the first group.
        """
        state_dict = self.base.state_dict()
        params = all_params(self.param_groups)
        state = dict(state_dict["state"])
        for key, p in zip(all_params(state_dict["param_groups"]), params, strict=True):
            if p in self.wrapper_state:
                state[key] = {**state.get(key, {}), type(self).__name__: {**self.wrapper_state[p]}}
        return with_shared(
            {**state_dict, "state": state}, {"calls": self.calls}, type(self).__name__
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned.

        Raises:
            UserError: the state belongs to another optimizer or to other parameters, or is not
                finite.
        """
        name = type(self).__name__
        rest, shared = split_shared(state_dict, name, name)
        if not isinstance(shared.get("calls"), int):
            raise UserError(f"the state is not one of {name}, it has no {name}.calls")
        # the wrapper's own state by parameter, and that of the base
        current: dict[Any, Mapping[str, Tensor]] = {}
        base_state = {}
        for key, values in rest["state"].items():
            current[key] = values.get(name, {})
            base_state[key] = {k: value for k, value in values.items() if k != name}
        keys = all_params(match_names(self, rest)["param_groups"])
        params = all_params(self.param_groups)
        if len(keys) != len(params):
            raise UserError(f"the state has {len(keys)} parameters, this {name} has {len(params)}")
        for key, p in zip(keys, params, strict=True):
            if current.get(key):
                label = f"{name}'s state of parameter {key}"
                check_param_state(label, current[key], self.init_wrapper(p))
        self.base.load_state_dict({**rest, "state": base_state})
        self.adopt_base_state()
        self.calls = shared["calls"]
        self.wrapper_state = {}
        for key, p in zip(keys, params, strict=True):
            if current.get(key):
                self.wrapper_state[p] = {
                    k: value.to(p.device, p.dtype, copy=True) for k, value in current[key].items()
                }


def _build_base(
    name: str, lr: float | None, maximize: bool, params: ParamsT, rules: Mapping[str, Factory]
) -> torch.optim.Optimizer:
    # a base without a momentum rule has no such parameters
    parameters = registry.constructor_parameters(registry.get("optim", name))
    for room in rules:
        if room not in parameters:
            raise UserError(f"optim.base={name} takes no {room}=; remove it or use another base")
    # the default of the class, since the trainer sets a rate in each group
    if lr is None and "lr" in parameters:
        lr = parameters["lr"].default
    config: dict[str, Any] = {"name": name}
    if lr is not None:
        config["lr"] = lr
    # a user's own base may not have it
    if maximize:
        config["maximize"] = maximize
    return registry.build("optim", config, params=params, **rules)
