"""Parameter groups: parameters grouped by the kind of module that owns them (seed.md)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from famx.notation import Kind, Layout, TensorInfo, UserError, suggest
from famx.optim._gradients import require_real_floats
from famx.registry import constructor_parameters, get, hyperparameters
from famx.validate import NON_NEGATIVE, check_number

MODULE_TYPES: dict[Kind, tuple[type[nn.Module], ...]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "attention": (nn.MultiheadAttention,),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "norm": (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase),
}
# base momentum and number of bands of each kind. Norms and biases have no weight decay; embeddings
# have a smaller learning rate and a larger decay
DEFAULTS: dict[Kind, dict[str, Any]] = {
    "conv": {"alpha": 0.9, "n_bands": 10},
    "attention": {"alpha": 0.92, "n_bands": 12},
    "embedding": {"alpha": 0.95, "n_bands": 8},
    "norm": {"alpha": 0.9, "n_bands": 4},
    "other": {"alpha": 0.9, "n_bands": 8},
}
LR_SCALE: dict[Kind, float] = {"embedding": 0.8}
DECAY_SCALE: dict[Kind, float] = {"embedding": 1.5, "norm": 0.0}
SETTINGS = ("alpha", "n_bands", "lr_scale", "decay_scale")
LAYOUTS: dict[Kind, Layout] = {"conv": "log", "attention": "split"}


@runtime_checkable
class HasKind(Protocol):
    """A module that names the kind of all parameters inside it."""

    kind: str


def parameter_groups(
    model: nn.Module,
    lr: float | None = None,
    weight_decay: float | None = None,
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
    alpha: float | None = None,
    n_bands: int | None = None,
) -> list[dict[str, Any]]:
    """Returns groups for any optimizer, one per kind that has parameters.

    A group has `params`, `param_names` (those of the model), `kind`, `alpha`, `n_bands` and, where
    set, `lr` and `weight_decay`. The kind is that of the module that owns the parameter: conv,
    attention (torch's, and everything inside a module whose class has `kind = "attention"`),
    embedding, norm or other. Biases and all other vectors and scalars are "norm". A parameter of
    several modules has the kind of the first. Frozen parameters are left out.

    Args:
        lr: learning rate, multiplied by .8 for embeddings; None leaves it to the optimizer.
        weight_decay: weight decay, multiplied by 1.5 for embeddings and 0 for norms; None leaves it
            to the optimizer, except for norms.
        kinds: settings of single kinds (`param_groups` in a config), which override the other
            arguments: `alpha`, `n_bands`, `lr_scale`, `decay_scale`. None changes nothing.
        alpha: base momentum of all kinds; None for the default of each kind. The groups then have
            an `alpha`, so that of the optimizer has no effect.
        n_bands: number of bands of all kinds; None for the default of each kind.

    Raises:
        UserError: `model` is not a module, an unknown kind or setting, a value that is not a number
            of at least 0, or a parameter that has no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            "parameter_groups needs the model, whose modules tell the kinds; "
            f"it received a {type(model).__name__}"
        )
    # settings, checked before any parameter is sorted
    check_number("lr", lr, NON_NEGATIVE)
    check_number("weight_decay", weight_decay, NON_NEGATIVE)
    overrides = _check_overrides(kinds or {})
    options = {"alpha": alpha, "n_bands": n_bands}
    for_all_kinds = {key: value for key, value in options.items() if value is not None}
    # one group per kind
    params = _params_by_kind(model)
    name_of = {p: name for name, p in model.named_parameters()}
    groups = []
    for kind, defaults in DEFAULTS.items():
        override = overrides.get(kind, {})
        lr_scale = override.pop("lr_scale", LR_SCALE.get(kind, 1.0))
        decay_scale = override.pop("decay_scale", DECAY_SCALE.get(kind, 1.0))
        names = [name_of[p] for p in params[kind]]
        group: dict[str, Any] = {"params": params[kind], "param_names": names, "kind": kind}
        group |= defaults | for_all_kinds | override
        if lr is not None:
            group["lr"] = lr * lr_scale
        if weight_decay is not None or kind == "norm":
            group["weight_decay"] = (weight_decay or 0.0) * decay_scale
        if group["params"]:
            groups.append(group)
    return groups


def scale_rates(
    groups: Sequence[dict[str, Any]], factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Returns groups whose learning rates are multiplied by a factor of each parameter.

    A group is split into one group for each factor. The groups with the largest factor come first.

    Args:
        groups: those of `parameter_groups`, with `lr`.
        factors: name of a parameter -> factor.

    Raises:
        UserError: a group has no learning rate.
    """
    scaled = []
    for factor in sorted(set(factors.values()), reverse=True):
        for group in groups:
            if "lr" not in group:
                raise UserError("learning rates by depth need an optimizer with an optim.lr")
            rows = [i for i, name in enumerate(group["param_names"]) if factors[name] == factor]
            if rows:
                part = {key: [group[key][i] for i in rows] for key in ("params", "param_names")}
                scaled.append({**group, **part, "lr": group["lr"] * factor})
    return scaled


def group_settings(optim: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `parameter_groups` that follow from an optimizer's config.

    These are `lr` and `weight_decay` (for a wrapper, those of its base). `alpha` and `n_bands` are
    returned only if the config changes them, since their defaults differ by kind. The first of
    `betas` counts as `alpha`.
    """
    if "base" in optim:
        # a wrapper sets only the lr of its base, so the base's other options have their defaults
        base = hyperparameters(get("optim", optim["base"]))
        lr = base["lr"].default if optim["lr"] is None else optim["lr"]
        optim = {"name": optim["base"], "lr": lr}
        if "weight_decay" in base:
            optim["weight_decay"] = base["weight_decay"].default
    # learning rate and weight decay
    known = hyperparameters(get("optim", optim["name"]))
    settings = {}
    for key in ("lr", "weight_decay"):
        if key in optim:
            settings[key] = optim[key]
            check_number(f"optim.{key}", optim[key], NON_NEGATIVE)
    # momentum and bands, if they are not the defaults
    for key in ("alpha", "n_bands"):
        if key in known and key in optim and optim[key] != known[key].default:
            settings[key] = optim[key]
    if "betas" in optim and optim["betas"][0] != known["betas"].default[0]:
        settings["alpha"] = optim["betas"][0]
    return settings


def check_group(group: dict[str, Any], name: str) -> None:
    """Checks the options of a group of the optimizer `name`.

    Raises:
        ValueError: an option or the dtype of a parameter is not allowed.
    """
    # options of the momentum rule
    kind = group["kind"]
    if kind not in get_args(Kind):
        raise UserError(f"unknown kind={kind}{suggest(str(kind), get_args(Kind))}")
    if not 0 <= group["alpha"] < 1:
        raise ValueError(f"alpha={group['alpha']} is not in [0, 1)")
    if not isinstance(group["n_bands"], int) or group["n_bands"] < 1:
        raise ValueError(f"n_bands={group['n_bands']} must be an integer of at least 1")
    # options of the step
    for key in ("lr", "weight_decay"):
        value = group[key]
        is_number = isinstance(value, int | float) and 0 <= value < torch.inf
        if not isinstance(value, Tensor) and not is_number:
            raise ValueError(f"{key}={value!r} must be a number, at least 0 and finite")
    for key, value in group.items():
        if key != "params":
            check_number(key, value)
    require_real_floats(group["params"], name)


def refuse_unused(
    group: Mapping[str, Any], part: type[torch.optim.Optimizer], options: Collection[str]
) -> None:
    """Refuses arguments of an optimizer in one of its groups, where they would change nothing.

    Args:
        options: names that act per group.

    Raises:
        UserError: the group has such an argument.
    """
    parameters = constructor_parameters(part)
    # also those that seed.md's FAMOptimizer had
    arguments = {*parameters, "handler", "eps"} - {*options, "params"}
    # `parameter_groups` returns one momentum per kind for every optimizer
    if "kind" in group:
        arguments -= {"alpha", "n_bands"}
    for key in group:
        if key in arguments:
            remedy = "set it in the constructor" if key in parameters else "remove it"
            raise UserError(
                f"{key}={group[key]} has no effect in a group of {part.__name__}: {remedy}"
            )


def tensor_info(param: Tensor, group: Mapping[str, Any]) -> TensorInfo:
    """Returns the description of a parameter for momentum rules and spectra."""
    kind = group["kind"]
    layout = LAYOUTS.get(kind, "equal")
    return TensorInfo(tuple(param.shape), kind, group["alpha"], group["n_bands"], layout)


def _check_overrides(
    kinds: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, dict[str, Any]]:
    """Returns the settings of each kind that are not None."""
    overrides: dict[str, dict[str, Any]] = {}
    for kind, settings in kinds.items():
        if kind not in DEFAULTS:
            raise UserError(f"param_groups.{kind}: no such kind{suggest(kind, DEFAULTS)}")
        if not isinstance(settings, Mapping | None):
            raise UserError(
                f"param_groups.{kind}={settings} must be a mapping of {', '.join(SETTINGS)}"
            )
        overrides[kind] = {}
        for key, value in (settings or {}).items():
            _check_setting(kind, key, value)
            if value is not None:
                overrides[kind][key] = value
    return overrides


def _check_setting(kind: str, key: str, value: object) -> None:
    path = f"param_groups.{kind}.{key}"
    if key not in SETTINGS:
        raise UserError(f"{path}: no such setting{suggest(key, SETTINGS)}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not is_number:
        raise UserError(f"{path}={value} must be a number of 0 or more")
    check_number(path, value, NON_NEGATIVE)


def _params_by_kind(model: nn.Module) -> dict[Kind, list[nn.Parameter]]:
    """Returns the trained parameters of each kind; a shared one belongs to its first owner."""
    kind_of: dict[nn.Parameter, Kind] = {}
    for parameter, kind in _parameters_with_kinds(model, None):
        if parameter.requires_grad:
            kind_of.setdefault(parameter, kind)
    params: dict[Kind, list[nn.Parameter]] = {kind: [] for kind in DEFAULTS}
    for parameter, kind in kind_of.items():
        params[kind].append(parameter)
    return params


def _parameters_with_kinds(
    module: nn.Module, inherited: Kind | None
) -> Iterator[tuple[nn.Parameter, Kind]]:
    """Yields every parameter inside the module with its kind.

    Args:
        inherited: kind of the module that contains this one.
    """
    kind = _declared_kind(module) or inherited or _kind_by_type(module)
    for parameter in module.parameters(recurse=False):
        if isinstance(parameter, UninitializedParameter):
            raise UserError(
                f"a {type(module).__name__} has no shape yet: "
                "run the model once before its parameters are sorted"
            )
        # a parameter with one value per channel is no weight matrix, whatever module owns it
        is_vector = parameter.ndim < 2 or isinstance(module, MODULE_TYPES["norm"])
        yield parameter, "norm" if is_vector else kind or "other"
    for child in module.children():
        yield from _parameters_with_kinds(child, kind)


def _declared_kind(module: nn.Module) -> Kind | None:
    """Returns the kind that the module's class names; a `kind` with another meaning is ignored."""
    declared = module.kind if isinstance(module, HasKind) else None
    return next((kind for kind in DEFAULTS if kind == declared), None)


def _kind_by_type(module: nn.Module) -> Kind | None:
    for kind, types in MODULE_TYPES.items():
        if isinstance(module, types):
            return kind
    return None
