"""The shell of famx's own update rules: a momentum for every tensor, no waiting for the device, no step on NaN."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx import registry
from famx.nn.hooks import set_observed
from famx.notation import Kind, Layout, TensorInfo, UserError
from famx.optim._common import captured, dense, keep_dtypes, refuse_complex, whole
from famx.validate import check_number

LAYOUTS: dict[Kind, Layout] = {"conv": "log", "attention": "split"}


class Update(NamedTuple):
    """One parameter in one step. The last three are floats where the device is the host, else 0-d tensors on it.

    Args:
        param, gradient: the gradient is contiguous.
        state: of the parameter.
        a: its coefficient of momentum.
        product: of all coefficients so far, this one among them.
        steps: taken with a gradient, this one among them.
    """

    param: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    a: float | Tensor
    product: float | Tensor
    steps: float | Tensor


class Optimizer(torch.optim.Optimizer):
    """Asks the momentum rule for a coefficient per tensor; `update` takes the step, unless a gradient is not finite.

    The step is cancelled on the device: its kernels read the flag, and the rule's buffers are put back; only the count
    of calls goes on, which says when a rule begins and when it measures, for that is the host's. A parameter without
    gradient is left alone; in the spectrum its gradient counts as zero. While `observed`, `metrics` holds the
    coefficients (`momentum`, their means `momentum/<kind>`), what the rule shows, and `skipped`, the steps cancelled.

    Who has read all gradients already, to clip their norm, may spare `step` the reading: `found_inf` set to a 0-d
    tensor, 1 where one is not finite, else 0, serves the next step alone.

    With `capturable` set to True a CUDA graph can capture a step, once one has been taken outside of it: tensors on the
    device count the steps then, and what is done in some steps is computed in each. A learning rate that is a number is
    captured as it is, like torch's own.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of the rule, called with `tensors` (and `spectrum`, if that is given); `usual` if not given.
        spectrum: factory of what the rule measures with; the rule's usual one if not given.
        usual: name and hyperparameters of the momentum rule that is worn where none is given.
        defaults: of the groups.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None,
        spectrum: Callable[..., nn.Module] | None,
        *,
        usual: Mapping[str, Any],
        **defaults: Any,
    ):
        for room, factory in (("momentum", momentum), ("spectrum", spectrum)):
            if factory is not None and not callable(factory):
                raise UserError(
                    f"{room}={factory!r} is no factory: give a class of famx.{room}, or a partial of one"
                )
        super().__init__(params, {"kind": "other", **defaults})
        self.observed = self.capturable = False
        self.found_inf: Tensor | None = None
        self.metrics: dict[str, Tensor] = {}
        self.calls: int | Tensor = 0
        self.tensors = [_info(p, group) for p, group in self._owned()]
        if momentum is not None:
            known = registry.hyperparameters(registry.get("momentum", usual["name"]))
            for key in [
                key for key in known if usual.get(key, known[key].default) != known[key].default
            ]:
                raise UserError(
                    f"{key}={usual[key]} is for momentum {usual['name']}, but another one is given: set it there"
                )
        build = momentum or partial(registry.build, "momentum", usual)
        self.rule = build(tensors=self.tensors, **({"spectrum": spectrum} if spectrum else {}))
        if spectrum and not hasattr(self.rule, "spectrum"):
            raise UserError(
                f"momentum {type(self.rule).__name__} measures no spectrum, so spectrum= has no use here"
            )
        self.skipped = torch.zeros((), dtype=torch.long)
        self.product, self.steps = torch.ones(len(self.tensors)), torch.zeros(len(self.tensors))

    def init(self, param: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, as named tensors."""
        raise NotImplementedError

    def update(self, group: dict[str, Any], rows: Sequence[Update], cancel: Tensor) -> None:
        """Takes the step of a group.

        Args:
            rows: where there is a gradient.
            cancel: 0-d, 1 where everything is to stay as it is, else 0.
        """
        raise NotImplementedError

    @torch._disable_dynamo  # torch's fused kernels cannot be traced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; `closure`, if given, computes the loss anew, which is returned.

        Raises:
            UserError: a CUDA graph is being captured, and it is not ready for that.
        """
        if captured() and isinstance(self.calls, int):
            raise UserError(
                f"{type(self).__name__}.step counts on the host: set capturable=True and take a step before the capture"
            )
        loss = None if closure is None else torch.enable_grad()(closure)()
        told, self.found_inf = self.found_inf, None
        owned = self._owned()
        gradients = [_decayed(p, group) for p, group in owned]
        present = [gradient is not None for gradient in gradients]
        if not any(present):
            return loss
        cancel = _cancel([g for g in gradients if g is not None]) if told is None else told.float()
        self._move(cancel.device)
        self.calls += 1  # in place, if it is a tensor
        coefficients = self._choose(owned, gradients, cancel)
        chosen = self._held(coefficients, cancel)
        taken = 1 - cancel
        if not all(present):
            taken = taken * _mask(tuple(present), cancel.device)
        self.steps += taken
        torch.where(taken > 0, self.product * coefficients, self.product, out=self.product)
        numbers = zip(gradients, chosen, scalars(self.product), scalars(self.steps), strict=True)
        for group in self.param_groups:
            own = zip(group["params"], islice(numbers, len(group["params"])), strict=True)
            rows = [
                Update(p, g, self._state(p), a, product, t)
                for p, (g, a, product, t) in own
                if g is not None
            ]
            if rows:
                self.update(group, rows, cancel)
        self.skipped += cancel.long()
        if self.observed:
            self._show(coefficients)
        return loss

    def _choose(
        self,
        owned: list[tuple[Tensor, dict[str, Any]]],
        gradients: list[Tensor | None],
        cancel: Float[Tensor, ""],
    ) -> Float[Tensor, " tensors"]:
        """The rule's coefficients; what the rule keeps stays as it was where a gradient is not finite."""
        if getattr(self.rule, "observed", False) is not self.observed:
            set_observed(self.rule, self.observed)
        whole = [
            p.new_zeros(()).expand(p.shape) if g is None else g
            for (p, _), g in zip(owned, gradients, strict=True)
        ]
        if cancel.device.type == "cpu" and not self.capturable and scalars(cancel[None]) == [0.0]:
            return self.rule(whole, self.calls)
        kept = [
            (module, *item)
            for module in self.rule.modules()
            for item in module.named_buffers(recurse=False)
        ]
        coefficients = self.rule(whole, self.calls)
        for module, name, old in kept:
            if (new := getattr(module, name)) is not old:
                # into the same memory, which is all that a CUDA graph knows
                setattr(module, name, torch.where(cancel > 0, old, new, out=old))
        return coefficients

    def _held(self, coefficients: Any, cancel: Float[Tensor, ""]) -> Sequence[float | Tensor]:
        """The rule's coefficients one by one.

        Raises:
            UserError: they are not one a tensor, or in a step that is taken one is not in [0, 1), which is seen where
                they are on the host.
        """
        name, n = type(self.rule).__name__, len(self.tensors)
        if not isinstance(coefficients, Tensor) or coefficients.shape != (n,):
            found = getattr(coefficients, "shape", type(coefficients).__name__)
            raise UserError(
                f"momentum {name} gives {found}, it must be a tensor of shape ({n},), one number a parameter"
            )
        chosen = scalars(coefficients)
        read = coefficients.device.type == "cpu" and scalars(cancel[None]) == [0.0]
        # the sum is for one that is no number, of which neither the least nor the largest need tell
        if read and not (min(chosen) >= 0 and max(chosen) < 1 and sum(chosen) >= 0):
            outside = next(a for a in chosen if not 0 <= a < 1)
            raise UserError(f"momentum {name} gives {outside:.3g}, a coefficient must be in [0, 1)")
        return chosen

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state.update(self.init(param))
        return state

    def _show(self, coefficients: Float[Tensor, " tensors"]) -> None:
        kinds: dict[Kind, list[int]] = {}
        for i, info in enumerate(self.tensors):
            kinds.setdefault(info.kind, []).append(i)
        means = {f"momentum/{kind}": coefficients[rows].mean() for kind, rows in kinds.items()}
        self.metrics = {
            "momentum": coefficients,
            "skipped": self.skipped,
            **means,
            **self.rule.metrics,
        }

    def _owned(self) -> list[tuple[Tensor, dict[str, Any]]]:
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def _move(self, device: torch.device) -> None:
        if self.skipped.device != device:
            self.rule.to(device)
            self.skipped, self.product, self.steps = (
                x.to(device) for x in (self.skipped, self.product, self.steps)
            )
        for part in (self, *self.rule.modules()) if self.capturable else ():
            if not getattr(part, "capturable", True):
                raise UserError(
                    f"capturable=True is not for {type(part).__name__}, which draws on the host in every step"
                )
            if isinstance(getattr(part, "calls", None), int):
                part.calls = torch.tensor(part.calls, device=device)

    def state_dict(self) -> dict[str, Any]:
        """torch's, and under "famx" what belongs to no single parameter: numbers and tensors of their own dtype."""
        shared = {
            "calls": int(self.calls),
            "skipped": self.skipped,
            "product": self.product,
            "steps": self.steps,
        }
        rule = {f"rule.{name}": value for name, value in self.rule.state_dict().items()}
        return {**super().state_dict(), "famx": {**shared, **rule}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            UserError: it is of another optimizer, or of one with another momentum rule or spectrum.
        """
        shared = dict(state_dict.get("famx", {}))
        rule = {
            name.removeprefix("rule."): value
            for name, value in shared.items()
            if name.startswith("rule.")
        }
        expected = {
            name: getattr(value, "shape", None) for name, value in self.rule.state_dict().items()
        }
        found = {name: getattr(value, "shape", None) for name, value in rule.items()}
        if "calls" not in shared or found != expected:
            raise UserError(
                f"the state is not of this {type(self).__name__}: it keeps {found}, this one {expected}"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "famx"})
        keep_dtypes(self, state_dict, self.init)
        self.rule.load_state_dict(rule)
        self.calls = shared["calls"]
        for name in ("skipped", "product", "steps"):
            setattr(self, name, shared[name].to(self.skipped.device, copy=True))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "rule"):
            raise UserError(
                f"{type(self).__name__} follows the tensors it began with: give all groups at the start"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["kind"] not in get_args(Kind):
            raise UserError(
                f"kind={group['kind']} is none{registry.suggest(str(group['kind']), get_args(Kind))}"
            )
        if not 0 <= group["alpha"] < 1:
            raise ValueError(f"alpha={group['alpha']} is not in [0, 1)")
        if not isinstance(group["n_bands"], int) or group["n_bands"] < 1:
            raise ValueError(f"n_bands={group['n_bands']} must be a whole number of at least 1")
        for name in ("lr", "weight_decay"):
            value = group[name]
            if not isinstance(value, Tensor) and not (
                isinstance(value, int | float) and 0 <= value < torch.inf
            ):
                raise ValueError(f"{name}={value!r} must be a number, at least 0 and finite")
        for name, value in group.items():
            if name != "params":
                check_number(name, value)
        refuse_complex(group["params"], type(self).__name__)

    __getstate__ = whole


def _info(param: Tensor, group: Mapping[str, Any]) -> TensorInfo:
    kind = group["kind"]
    return TensorInfo(
        tuple(param.shape), kind, group["alpha"], group["n_bands"], LAYOUTS.get(kind, "equal")
    )


@lru_cache(maxsize=8)
def _mask(present: tuple[bool, ...], device: torch.device) -> Float[Tensor, " tensors"]:
    return torch.tensor(present, dtype=torch.float32).to(device, non_blocking=True)


def scalars(values: Float[Tensor, " n"]) -> Sequence[float | Tensor]:
    """The values one by one: numbers where they lie in the host's memory, so that nobody waits, else 0-d tensors."""
    return values.tolist() if values.device.type == "cpu" else list(values.unbind())


def at_least(value: float | Tensor, floor: float) -> float | Tensor:
    """The larger of the two."""
    return value.clamp_min(floor) if isinstance(value, Tensor) else max(value, floor)


def _cancel(gradients: list[Tensor]) -> Float[Tensor, ""]:
    """1 where an entry, or the sum of a tensor's, is not finite, else 0."""
    # a sum is the fastest way to read all entries, and one that is not finite makes the sum so
    sums = torch.stack(
        [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    )
    return (sums * 0).sum().ne(0).float()


def _decayed(param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
    """The gradient, contiguous, with the coupled weight decay where that is asked for; None if it has no entries."""
    gradient = dense(param)
    if gradient is None or not gradient.numel():
        return None
    if group["weight_decay"] and not group.get("decoupled", True):
        gradient = gradient.add(param, alpha=group["weight_decay"])
    return gradient.contiguous()
