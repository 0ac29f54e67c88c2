"""The shell of famx's own update rules: a momentum for every tensor, no waiting for the device, no step on NaN."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from famx import registry
from famx.notation import Kind, Layout, TensorInfo, UserError
from famx.observe import watch

LAYOUTS: dict[Kind, Layout] = {"conv": "log", "attention": "split"}


class Optimizer(torch.optim.Optimizer):
    """Asks the momentum rule for a coefficient per tensor; `update` takes the step, unless a gradient is not finite.

    The step is cancelled on the device: its kernels read the flag, and the rule's buffers are put back. A parameter
    without gradient is left alone; in the spectrum its gradient counts as zero. While `observed`, `metrics` holds the
    coefficients (`momentum`, their means `momentum/<kind>`), what the rule shows, and `skipped`, the steps cancelled.

    Args:
        params: parameters or groups; a group may have `kind`, `alpha` and `n_bands` of its own.
        momentum: factory of the rule, called with `tensors` (and `spectrum`, if that is given); `usual` if not given.
        spectrum: factory of what the rule measures with; the rule's usual one if not given.
        usual: name and hyperparameters of the momentum rule that is worn where none is given.
        debias: whether the average of few gradients is divided by the sum of their weights, 1 - product of all a.
        defaults: of the groups.
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None,
        spectrum: Callable[..., nn.Module] | None,
        *,
        usual: Mapping[str, Any],
        debias: bool = False,
        **defaults: Any,
    ):
        super().__init__(params, {"kind": "other", **defaults})
        self.debias = debias
        self.observed = False
        self.metrics: dict[str, Tensor] = {}
        self.calls = 0
        self.tensors = [_info(p, group) for p, group in self._owned()]
        if momentum is not None:
            known = registry.hyperparameters(registry.get("momentum", usual["name"]))
            for key in [key for key in known if usual.get(key, known[key].default) != known[key].default]:
                raise UserError(
                    f"{key}={usual[key]} is for momentum {usual['name']}, but another one is given: set it there"
                )
        build = momentum or partial(registry.build, "momentum", usual)
        self.rule = build(tensors=self.tensors, **({"spectrum": spectrum} if spectrum else {}))
        if spectrum and not hasattr(self.rule, "spectrum"):
            raise UserError(f"momentum {type(self.rule).__name__} measures no spectrum, so spectrum= has no use here")
        self.skipped = torch.zeros((), dtype=torch.long)
        self.product = torch.ones(len(self.tensors))

    def init(self, param: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, as named tensors."""
        raise NotImplementedError

    def update(
        self,
        group: dict[str, Any],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        cancel: Tensor,
    ) -> None:
        """Takes the step of a group.

        Args:
            params, gradients: of the group, where there is a gradient; the gradients are contiguous.
            weights: 0-d each, what the new gradient counts in the average.
            cancel: 0-d, 1 where everything is to stay as it is, else 0.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; `closure`, if given, computes the loss anew, which is returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        gradients = [_decayed(p, group) for p, group in self._owned()]
        if all(gradient is None for gradient in gradients):
            return loss
        # a sum is the fastest way to read all entries, and one that is not finite makes the sum so
        sums = torch.stack([g.sum(dtype=torch.float32) for g in gradients if g is not None])
        self._move(sums.device)
        self.calls += 1
        finite = sums.isfinite().all()
        coefficients = self._choose(gradients, finite)
        weights = iter(self._weights(coefficients, gradients, finite).unbind())
        cancel, remaining = finite.logical_not(), iter(gradients)
        for group in self.param_groups:
            rows = [(p, next(remaining), next(weights)) for p in group["params"]]
            rows = [row for row in rows if row[1] is not None]
            for p, _, _ in rows:
                if not self.state[p]:
                    self.state[p].update(self.init(p))
            if rows:
                self.update(group, *map(list, zip(*rows, strict=True)), cancel.float())
        self.skipped = self.skipped + cancel
        if self.observed:
            self._show(coefficients)
        return loss

    def _choose(self, gradients: list[Tensor | None], finite: Bool[Tensor, ""]) -> Float[Tensor, " tensors"]:
        """The rule's coefficients; what the rule keeps stays as it was where a gradient is not finite."""
        watch(self.rule, self.observed)
        kept = [(module, *item) for module in self.rule.modules() for item in module.named_buffers(recurse=False)]
        whole = [
            p.new_zeros(()).expand(p.shape) if g is None else g
            for (p, _), g in zip(self._owned(), gradients, strict=True)
        ]
        coefficients = self.rule(whole, self.calls)
        for module, name, old in kept:
            if (new := getattr(module, name)) is not old:
                setattr(module, name, torch.where(finite, new, old))
        return coefficients

    def _weights(
        self, coefficients: Float[Tensor, " tensors"], gradients: list[Tensor | None], finite: Bool[Tensor, ""]
    ) -> Float[Tensor, " tensors"]:
        """1 - a; for the debiased average itself m̂ <- m̂ + w·(g - m̂), w = (1 - a) / (1 - product of all a)."""
        if not self.debias:
            return 1 - coefficients
        present = torch.tensor([gradient is not None for gradient in gradients]).to(finite.device)
        self.product = torch.where(finite & present, self.product * coefficients, self.product)
        return (1 - coefficients) / (1 - self.product)

    def _show(self, coefficients: Float[Tensor, " tensors"]) -> None:
        kinds: dict[Kind, list[int]] = {}
        for i, info in enumerate(self.tensors):
            kinds.setdefault(info.kind, []).append(i)
        means = {f"momentum/{kind}": coefficients[rows].mean() for kind, rows in kinds.items()}
        self.metrics = {"momentum": coefficients, "skipped": self.skipped, **means, **self.rule.metrics}

    def _owned(self) -> list[tuple[Tensor, dict[str, Any]]]:
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def _move(self, device: torch.device) -> None:
        if self.skipped.device != device:
            self.rule.to(device)
            self.skipped, self.product = self.skipped.to(device), self.product.to(device)

    def state_dict(self) -> dict[str, Any]:
        """torch's, and under "famx" what belongs to no single parameter: numbers and tensors of their own dtype."""
        shared = {"calls": self.calls, "skipped": self.skipped, "product": self.product}
        rule = {f"rule.{name}": value for name, value in self.rule.state_dict().items()}
        return {**super().state_dict(), "famx": {**shared, **rule}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            UserError: it is of another optimizer, or of one with another momentum rule or spectrum.
        """
        shared = dict(state_dict.get("famx", {}))
        rule = {name.removeprefix("rule."): value for name, value in shared.items() if name.startswith("rule.")}
        expected = {name: getattr(value, "shape", None) for name, value in self.rule.state_dict().items()}
        found = {name: getattr(value, "shape", None) for name, value in rule.items()}
        if "calls" not in shared or found != expected:
            raise UserError(f"the state is not of this {type(self).__name__}: it keeps {found}, this one {expected}")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "famx"})
        self.rule.load_state_dict(rule)
        self.calls = shared["calls"]
        self.skipped = shared["skipped"].to(self.skipped.device, copy=True)
        self.product = shared["product"].to(self.product.device, copy=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "rule"):
            raise UserError(f"{type(self).__name__} follows the tensors it began with: give all groups at the start")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not 0 <= group["alpha"] < 1:
            raise ValueError(f"alpha={group['alpha']} is not in [0, 1)")
        if group["n_bands"] < 1:
            raise ValueError(f"n_bands={group['n_bands']} must be at least 1")
        for name in ("lr", "weight_decay"):
            if not isinstance(group[name], Tensor) and group[name] < 0:
                raise ValueError(f"{name}={group[name]} is negative")
        for p in group["params"]:
            if not p.is_floating_point():
                raise ValueError(f"a parameter is {p.dtype}: {type(self).__name__} turns real floating-point ones only")


def _info(param: Tensor, group: Mapping[str, Any]) -> TensorInfo:
    kind = group["kind"]
    return TensorInfo(tuple(param.shape), kind, group["alpha"], group["n_bands"], LAYOUTS.get(kind, "equal"))


def _gradient(param: Tensor) -> Tensor | None:
    """The gradient, dense.

    Raises:
        UserError: it is sparse.
    """
    if param.grad is not None and param.grad.layout is not torch.strided:
        raise UserError(f"a gradient is {param.grad.layout}, this takes dense ones: build the layer with sparse=False")
    return param.grad


def _decayed(param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
    """The gradient, contiguous, with the coupled weight decay where that is asked for."""
    gradient = _gradient(param)
    if gradient is None:
        return None
    if group["weight_decay"] and not group["decoupled"]:
        gradient = gradient.add(param, alpha=group["weight_decay"])
    return gradient.contiguous()


class Wrapped(torch.optim.Optimizer):
    """Before one of torch's own optimizers: takes its fused kernel where there is one, and refuses a momentum rule."""

    exempt: ClassVar[dict[str, str]] = {
        "meta": "torch's fused kernels have no meta form",
        "no_host_read": "torch's own step may read the learning rate and the step count",
        "non_finite": "torch's own step takes every gradient",
    }
    observed = False
    fuses = True

    def __init__(self, params: Any, *rules: Callable[..., nn.Module] | None, **options: Any):
        if any(rules):
            name = type(self).__name__
            raise UserError(
                f"{name} has one momentum for all tensors: momentum= and spectrum= are for optim=fam and its kin"
            )
        self.metrics: dict[str, Tensor] = {}
        groups = torch.optim.Optimizer(params, {}).param_groups
        tensors = [p for group in groups for p in group["params"]]
        self.fuses &= all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for p in tensors)
        super().__init__(groups, **options, fused=self.fuses)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; `closure`, if given, computes the loss anew, which is returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        given = [p for group in self.param_groups for p in group["params"] if _gradient(p) is not None]
        # torch's fused kernels walk through memory and do not look at strides
        fused = self.fuses and all(p.is_contiguous() and p.grad.is_contiguous() for p in given)
        for group in self.param_groups:
            group["fused"] = fused
        super().step()
        return loss
