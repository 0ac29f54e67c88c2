"""Base of famx's own update rules: one momentum per tensor, no device synchronization."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from famx import kernels
from famx.nn.hooks import set_observed
from famx.notation import UserError
from famx.optim._gradients import decayed_grads, is_capturing, non_finite, presence, with_zeros
from famx.optim._kernels import scalars
from famx.optim._param_groups import check_group, refuse_unused, tensor_info
from famx.optim._rules import (
    Factory,
    buffers_of,
    build_rule,
    check_coefficients,
    check_factories,
    check_range,
    check_shared,
    flag_readers,
    make_capturable,
    means_by_kind,
    pass_flag,
    restore_buffers,
)
from famx.optim._skipping import SkipWarning, is_set
from famx.optim._state import (
    Layout,
    check_layouts,
    check_state,
    getstate,
    keep_dtypes,
    match_names,
    rows_of,
    split_shared,
    with_shared,
)
from famx.optim._update import Group, GroupUpdate, Update, states_of


class Optimizer(torch.optim.Optimizer):
    """Gets one coefficient per tensor from the momentum rule; a subclass defines `update`.

    Where famx's kernels run, a step calls `update_group` instead, with numbers as vectors. A
    subclass overrides it if it has a kernel for all tensors; by default, it calls `update`.

    A step with a non-finite gradient is skipped without a device synchronization: the kernels read
    a flag, and the buffers of the rule are restored. `calls`, by which a rule decides when to start
    and when to measure, is counted on the host and includes skipped steps. A parameter without a
    gradient does not change, and the rule gets zeros as its gradient. While `observed` is True,
    `metrics` holds the coefficients (`momentum`), their means (`momentum/<kind>`) and the number of
    skipped steps (`skipped`).

    A caller that has checked all gradients, for example for clipping, can set `found_inf` (0-d, 1 =
    a gradient is not finite); the next step then does not check them again.

    With `capturable` set to True, a CUDA graph can capture a step after a first step outside of the
    graph. Steps are then counted in tensors on the device, and work that only some steps need is
    done in every step. As in torch's optimizers, the graph captures a float learning rate as a
    constant.

    Args:
        params: parameters or groups; a group may have its own `kind`, `alpha` and `n_bands`.
        defaults: options of groups that do not set them: `lr`, `alpha` (base momentum),
            `weight_decay`, `n_bands`, `maximize`, and those that `update` reads.
        momentum: factory of the momentum rule, called with `tensors` and, if that is passed,
            `spectrum`; None builds the rule that `default_rule` describes.
        spectrum: factory of the spectrum that the rule measures; None for the rule's default.

    Attributes:
        default_rule: name and hyperparameters of a momentum rule, as in a config.
    """

    default_rule: Mapping[str, Any]
    # torch's constructor adds groups too
    accepts_groups = True

    def __init__(
        self,
        params: ParamsT,
        defaults: Mapping[str, Any],
        momentum: Factory | None = None,
        spectrum: Factory | None = None,
    ):
        check_factories({"momentum": momentum, "spectrum": spectrum})
        # parameter groups, which `add_param_group` checks
        super().__init__(params, {"kind": "other", "maximize": False, **defaults})
        self.accepts_groups = False
        self.observed = False
        self.capturable = False
        self.found_inf: Tensor | None = None
        self.metrics: dict[str, Tensor] = {}
        self.skip_warning = SkipWarning(type(self).__name__)
        self.layouts: Sequence[Layout] = []
        self.calls: int | Tensor = 0
        self.tensors = [
            tensor_info(p, group) for group in self.param_groups for p in group["params"]
        ]
        self.rule: nn.Module = build_rule(self.tensors, self.default_rule, momentum, spectrum)
        self.rule_modules = list(self.rule.modules())
        self.flag_readers = flag_readers(self.rule_modules)
        self.rule_observed = False
        self.skipped = torch.zeros((), dtype=torch.long)
        self.momentum_products = torch.ones(len(self.tensors))
        self.steps = torch.zeros(len(self.tensors))

    def init(self, param: Tensor) -> dict[str, Tensor]:
        """Returns the initial state of a parameter, as named tensors."""
        raise NotImplementedError

    def update(self, group: Group, updates: Sequence[Update], found_inf: Float[Tensor, ""]) -> None:
        """Takes the step of the parameters of a group that have a gradient.

        Args:
            found_inf: 0-d, 1 if parameters and state must not change, else 0.
        """
        raise NotImplementedError

    def update_group(self, group: Group, update: GroupUpdate, found_inf: Float[Tensor, ""]) -> None:
        """Takes the step of a group where famx's kernels run; by default, calls `update`.

        Args: see `update`.
        """
        self.update(group, update.split(), found_inf)

    @torch._disable_dynamo  # torch's fused kernels cannot be traced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: computes the loss and its gradients again.

        Returns:
            The loss that `closure` returns, None without one.

        Raises:
            UserError: a CUDA graph is being captured, and the optimizer is not ready for that.
        """
        self._refuse_unready_capture()
        loss = None if closure is None else torch.enable_grad()(closure)()
        # a flag that a caller has set is for one step
        flag = self.found_inf
        self.found_inf = None

        # gradients, and whether one is not finite
        params: list[Tensor] = []
        gradients: list[Tensor | None] = []
        for group in self.param_groups:
            params += group["params"]
            gradients += decayed_grads(group)
        self.layouts = check_layouts(self, self.layouts, params)
        if all(gradient is None for gradient in gradients):
            return loss
        found_inf = non_finite(gradients, params) if flag is None else flag.float()
        self._move_to(found_inf.device)
        self.calls += 1  # in place, if it is a tensor

        # one coefficient per tensor; the rule gets zeros for missing gradients
        inputs = with_zeros(gradients, params)
        coefficients = self._choose_momentum(inputs, found_inf)
        check_coefficients(self.rule, coefficients, len(self.tensors))

        # the step
        has_gradient = presence(gradients, found_inf.device)
        step = self._step_groups if kernels.available(found_inf.device) else self._step_tensors
        step(gradients, coefficients, has_gradient, found_inf)
        if not self.capturable:
            self.skip_warning.update(found_inf, self.skipped)
        if self.observed:
            self._record_metrics(coefficients)
        return loss

    def _step_groups(
        self,
        gradients: Sequence[Tensor | None],
        coefficients: Float[Tensor, " tensors"],
        has_gradient: Float[Tensor, " tensors"] | None,
        found_inf: Float[Tensor, ""],
    ) -> None:
        """Counts the step and takes it group by group, with numbers in vectors on the device."""
        from famx.kernels.multi_tensor import count_step

        momentum = coefficients.to(torch.float32).contiguous()
        counters = (self.momentum_products, self.steps, self.skipped)
        count_step(counters, momentum, has_gradient, found_inf)
        numbers = (momentum, self.momentum_products, self.steps)
        first = 0
        for group in self.param_groups:
            params = group["params"]
            rows = slice(first, first + len(params))
            first = rows.stop
            group_gradients = gradients[rows]
            if all(gradient is None for gradient in group_gradients):
                continue
            states = states_of(self.state, params, group_gradients, self.init)
            # a slice of all numbers would cost time on the host
            is_all = len(params) == len(gradients)
            group_numbers = numbers if is_all else [vector[rows] for vector in numbers]
            update = GroupUpdate(params, group_gradients, states, *group_numbers)
            self.update_group(group, update, found_inf)

    def _step_tensors(
        self,
        gradients: Sequence[Tensor | None],
        coefficients: Float[Tensor, " tensors"],
        has_gradient: Float[Tensor, " tensors"] | None,
        found_inf: Float[Tensor, ""],
    ) -> None:
        """Counts the step and takes it group by group, with numbers for each tensor."""
        momenta = self._check_momentum(coefficients, found_inf)
        # skipped steps and steps without a gradient do not count
        increment = 1 - found_inf
        if has_gradient is not None:
            increment = increment * has_gradient
        self.steps += increment
        products = self.momentum_products
        torch.where(increment > 0, products * coefficients, products, out=products)

        # the step, group by group
        rows = zip(gradients, momenta, scalars(products), scalars(self.steps), strict=True)
        for group in self.param_groups:
            group_rows = islice(rows, len(group["params"]))
            updates = [
                Update(p, gradient, self._state_of(p), momentum, product, step)
                for p, (gradient, momentum, product, step) in zip(
                    group["params"], group_rows, strict=True
                )
                if gradient is not None
            ]
            if updates:
                self.update(group, updates, found_inf)
        self.skipped += found_inf.long()

    def _refuse_unready_capture(self) -> None:
        if is_capturing() and isinstance(self.calls, int):
            raise UserError(
                f"{type(self).__name__}.step counts on the host: "
                "set capturable=True and take a step before the capture"
            )

    def _choose_momentum(
        self, gradients: Sequence[Tensor], found_inf: Float[Tensor, ""]
    ) -> Float[Tensor, " tensors"]:
        """Calls the rule; restores its buffers if a gradient is not finite."""
        # the rule is observed together with the optimizer
        if self.rule_observed is not self.observed:
            set_observed(self.rule, self.observed)
            self.rule_observed = self.observed
        # on the CPU the flag can be read, and a step that is not skipped needs no restore
        if found_inf.device.type == "cpu" and not self.capturable and not is_set(found_inf):
            return self.rule(gradients, self.calls)
        saved = buffers_of(self.rule_modules)
        # a CUDA graph replays fixed addresses, into which only a restore writes
        if not self.capturable:
            pass_flag(self.flag_readers, saved, found_inf)
        coefficients = self.rule(gradients, self.calls)
        restore_buffers(saved, found_inf)
        return coefficients

    def _check_momentum(
        self, coefficients: Float[Tensor, " tensors"], found_inf: Float[Tensor, ""]
    ) -> Sequence[float | Tensor]:
        """Returns the rule's coefficients one by one.

        Raises:
            UserError: one is outside [0, 1). That is checked only on the CPU, and only in steps
                that are not skipped.
        """
        momenta = scalars(coefficients)
        # in a skipped step the coefficients may be NaN, like the gradients
        if coefficients.device.type == "cpu" and not is_set(found_inf):
            check_range(self.rule, momenta)
        return momenta

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state.update(self.init(param))
        return state

    def _record_metrics(self, coefficients: Float[Tensor, " tensors"]) -> None:
        means = means_by_kind(self.tensors, coefficients)
        self.metrics = {"momentum": coefficients, "skipped": self.skipped, **means}

    def _move_to(self, device: torch.device) -> None:
        # only in the first step: the constructor does not know the device of the gradients
        if self.skipped.device != device:
            self.rule.to(device)
            for name, value in self._counters().items():
                setattr(self, name, value.to(device))
        if self.capturable:
            make_capturable((self, *self.rule.modules()), device)

    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state_dict and, in its first group, the state that all parameters share.

        The shared state holds numbers and tensors; names of the rule's state begin with `rule.`.
        """
        shared = {**self._counters(), "calls": int(self.calls)}
        for name, value in self.rule.state_dict().items():
            shared[f"rule.{name}"] = value
        return with_shared(super().state_dict(), shared)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned; by the names of parameters, where both sides have them.

        Raises:
            UserError: the state belongs to other parameters, another optimizer, momentum rule or
                spectrum, or is not finite.
        """
        rest, shared = split_shared(state_dict, type(self).__name__)
        ordered = match_names(self, rest)
        rows = rows_of(ordered, rest)
        current = {**self._counters(), "calls": 0}
        rule_state = check_shared(type(self).__name__, self.rule, shared, current, rows)
        check_state(self, ordered, lambda p, _: self.init(p))
        super().load_state_dict(ordered)
        keep_dtypes(self, ordered, lambda p, _: self.init(p))
        self.rule.load_state_dict(rule_state)
        self.calls = shared["calls"]
        self.skipped = shared["skipped"].to(self.skipped.device, copy=True)
        self.momentum_products = shared["momentum_products"][rows].to(self.skipped.device)
        self.steps = shared["steps"][rows].to(self.skipped.device)

    def _counters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("skipped", "momentum_products", "steps")}

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group and checks its options; only the constructor can call it.

        Raises:
            UserError: it is called after the constructor, or an option is not allowed.
        """
        if not self.accepts_groups:
            raise UserError(
                f"the momentum rule of {type(self).__name__} is built for the tensors of the "
                "constructor: pass all groups there"
            )
        refuse_unused(param_group, type(self), self.defaults)
        super().add_param_group(param_group)
        check_group(self.param_groups[-1], type(self).__name__)

    __getstate__ = getstate
