"""Helpers of an optimizer to build its momentum rule, check it, and restore its buffers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx import registry
from famx.notation import Kind, TensorInfo, UserError
from famx.optim._state import check_tensor

Factory = Callable[..., nn.Module]
SavedBuffers = dict[nn.Module, dict[str, Tensor | None]]


@runtime_checkable
class Capturable(Protocol):
    """A part that declares whether a CUDA graph can capture its calls."""

    capturable: bool


@runtime_checkable
class CountsCalls(Protocol):
    """A part that counts its calls: on the host, or in a 0-d tensor that a CUDA graph advances."""

    calls: int | Tensor


@runtime_checkable
class ReadsFlag(Protocol):
    """A part that skips a step itself, for some of its buffers, without a device synchronization.

    Attributes:
        found_inf: flag of the next call (0-d); where it is 1, these buffers keep their values.
        flagged_buffers: their names.
    """

    found_inf: Tensor | None
    flagged_buffers: tuple[str, ...]


def check_factories(rules: Mapping[str, object]) -> None:
    """Refuses values that are not factories of a momentum rule or spectrum.

    Args:
        rules: room -> factory or None.

    Raises:
        UserError: a value cannot be called, such as the name of a part.
    """
    for room, factory in rules.items():
        if factory is not None and not callable(factory):
            raise UserError(
                f"{room}={factory!r} is not a factory: "
                f"pass a class of famx.{room}, or a functools.partial of one"
            )


def build_rule(
    tensors: Sequence[TensorInfo],
    default_rule: Mapping[str, Any],
    momentum: Factory | None,
    spectrum: Factory | None,
) -> nn.Module:
    """Builds the momentum rule of an optimizer.

    Args:
        tensors: the parameter tensors, in the order of the gradients.
        default_rule: name and hyperparameters of the rule that is built if `momentum` is None.

    Raises:
        UserError: a spectrum is passed for a rule that measures none, or an option of the default
            rule is set although another rule is passed.
    """
    if momentum is None:
        momentum = partial(registry.build, "momentum", default_rule)
    else:
        # the optimizer's options for its default rule have no effect on another one
        known = registry.hyperparameters(registry.get("momentum", default_rule["name"]))
        for key, parameter in known.items():
            if default_rule.get(key, parameter.default) != parameter.default:
                raise UserError(
                    f"{key}={default_rule[key]} is an option of momentum={default_rule['name']}, "
                    "but another rule is passed: set it there"
                )
    if spectrum is None:
        return momentum(tensors=tensors)
    # `registry.build` passes a spectrum on only to a rule that takes one
    rule = momentum(tensors=tensors, spectrum=spectrum)
    if "spectrum" not in dict(rule.named_children()):
        raise UserError(
            f"the momentum rule {type(rule).__name__} measures no spectrum: remove spectrum="
        )
    return rule


def check_coefficients(rule: nn.Module, coefficients: object, n: int) -> None:
    """Checks that a rule returned one coefficient for each of `n` tensors.

    Raises:
        UserError: it returned something else than a tensor, or a tensor of another shape.
    """
    if isinstance(coefficients, Tensor) and coefficients.shape == (n,):
        return
    result = type(coefficients).__name__
    if isinstance(coefficients, Tensor):
        result += f" of shape {tuple(coefficients.shape)}"
    raise UserError(
        f"the momentum rule {type(rule).__name__} returns a {result}, "
        f"it must be a tensor of shape ({n},): one coefficient per parameter"
    )


def check_range(rule: nn.Module, momenta: Sequence[float | Tensor]) -> None:
    """Checks that all coefficients are in [0, 1).

    Raises:
        UserError: one is not; the message contains the first such value.
    """
    # min and max may miss NaN, the sum does not
    if min(momenta) >= 0 and max(momenta) < 1 and sum(momenta) >= 0:
        return
    outside = next(a for a in momenta if not 0 <= a < 1)
    raise UserError(
        f"the momentum rule {type(rule).__name__} returns {outside:.3g}, "
        "a coefficient must be in [0, 1)"
    )


def means_by_kind(
    tensors: Sequence[TensorInfo], coefficients: Float[Tensor, " tensors"]
) -> dict[str, Tensor]:
    """Returns the mean coefficient of the tensors of each kind, as `momentum/<kind>`."""
    rows_by_kind: dict[Kind, list[int]] = {}
    for i, info in enumerate(tensors):
        rows_by_kind.setdefault(info.kind, []).append(i)
    return {f"momentum/{kind}": coefficients[rows].mean() for kind, rows in rows_by_kind.items()}


def flag_readers(modules: Iterable[nn.Module]) -> dict[nn.Module, ReadsFlag]:
    """Returns the modules that read a flag, by themselves."""
    return {module: module for module in modules if isinstance(module, ReadsFlag)}


def buffers_of(modules: Iterable[nn.Module]) -> SavedBuffers:
    """Returns the buffers of modules by name.

    Calls of the rule replace buffers and never mutate them, so no copies are needed.
    """
    # `named_buffers` takes ten times as long
    return {module: dict(module._buffers) for module in modules}


def pass_flag(
    readers: Mapping[nn.Module, ReadsFlag], saved: SavedBuffers, found_inf: Float[Tensor, ""]
) -> None:
    """Lets modules skip their next call where `found_inf` is 1.

    Args:
        saved: buffers to restore after that call, from which those of the modules are removed.
    """
    for module, reader in readers.items():
        reader.found_inf = found_inf
        for name in reader.flagged_buffers:
            del saved[module][name]


def restore_buffers(saved: SavedBuffers, found_inf: Float[Tensor, ""]) -> None:
    """Restores the saved buffers of modules where `found_inf` is 1, else changes nothing."""
    is_skipped = None
    for module, buffers in saved.items():
        for name, old in buffers.items():
            new = module._buffers[name]
            if new is old or new is None or old is None:
                continue
            # computed once, and only if a buffer has changed
            if is_skipped is None:
                is_skipped = found_inf > 0
            # writes into the same memory, since a CUDA graph replays fixed addresses
            setattr(module, name, torch.where(is_skipped, old, new, out=old))


def make_capturable(parts: Iterable[object], device: torch.device) -> None:
    """Moves the call counters of an optimizer, its rule and the rule's parts to the device.

    Raises:
        UserError: a part needs the host in every call.
    """
    for part in parts:
        if isinstance(part, Capturable) and not part.capturable:
            raise UserError(
                f"capturable=True is not possible with {type(part).__name__}, "
                "which needs the host in every step"
            )
        if isinstance(part, CountsCalls) and isinstance(part.calls, int):
            part.calls = torch.tensor(part.calls, device=device)


def check_shared(
    name: str,
    rule: nn.Module,
    shared: Mapping[str, Any],
    current: Mapping[str, Any],
    rows: Sequence[int],
) -> dict[str, Any]:
    """Checks what all parameters of the optimizer `name` share, before it is loaded.

    Args:
        shared: saved values by name; names of the rule's state begin with `rule.`.
        current: this optimizer's values by name, without those of the rule.
        rows: position in the saved state of each parameter.

    Returns:
        The state of the rule.

    Raises:
        UserError: it belongs to another optimizer, rule or spectrum, or is not finite.
    """
    # the rule must have the same buffers
    rule_state = {}
    for key, value in shared.items():
        if key.startswith("rule."):
            rule_state[key.removeprefix("rule.")] = value
    expected = rule.state_dict()
    if rule_state.keys() != expected.keys() or not current.keys() <= shared.keys():
        raise UserError(
            f"the state does not fit this {name}: "
            f"its momentum rule has {_shapes(rule_state)}, this one has {_shapes(expected)}"
        )
    for key, value in [*current.items(), *expected.items()]:
        saved = shared[key] if key in current else rule_state[key]
        if isinstance(value, Tensor):
            check_tensor(f"the state does not fit this {name}: {key}", saved, value)
        elif isinstance(value, int) and (not isinstance(saved, int) or saved < 0):
            raise UserError(f"the state does not fit this {name}: {key} is {saved!r}")
    # a rule has one row for each tensor
    if rule_state and list(rows) != sorted(rows):
        raise UserError(
            f"the state of {type(rule).__name__} has its tensors in another order: build {name} "
            "with its groups and parameters in the order that was saved"
        )
    return rule_state


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """Returns the shapes of tensors by name, None for other values."""
    result: dict[str, tuple[int, ...] | None] = {}
    for name, value in state.items():
        result[name] = tuple(value.shape) if isinstance(value, Tensor) else None
    return result
