"""Parameters sorted by the kind of module that owns them, each kind with its own settings (seed.md)."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from famx.notation import Kind, UserError
from famx.registry import get, hyperparameters, suggest
from famx.validate import NON_NEGATIVE, check_number

TYPES: dict[Kind, tuple[type[nn.Module], ...]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "attention": (nn.MultiheadAttention,),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "norm": (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase),
}
# base momentum and bands; norms and biases are not decayed, embeddings learn slower and decay faster
SETTINGS: dict[Kind, dict[str, Any]] = {
    "conv": {"alpha": 0.9, "n_bands": 10},
    "attention": {"alpha": 0.92, "n_bands": 12},
    "embedding": {"alpha": 0.95, "n_bands": 8},
    "norm": {"alpha": 0.9, "n_bands": 4},
    "other": {"alpha": 0.9, "n_bands": 8},
}
OWN = ("alpha", "n_bands", "lr_scale", "decay_scale")
LR_SCALE: dict[Kind, float] = {"embedding": 0.8}
DECAY_SCALE: dict[Kind, float] = {"embedding": 1.5, "norm": 0.0}


def parameter_groups(
    model: nn.Module,
    lr: float | None = None,
    weight_decay: float | None = None,
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
    alpha: float | None = None,
    n_bands: int | None = None,
) -> list[dict[str, Any]]:
    """Groups for any optimizer, one a kind: `params`, `kind`, `alpha`, `n_bands`, `lr`, `weight_decay`.

    The kind is that of the module that owns the parameter: convolutions, attention (torch's, and whatever stands under
    a module whose class has `kind = "attention"`), embeddings, norms, others; biases and all other vectors and scalars
    are "norm". A parameter that several modules share is sorted by the first. Frozen ones are left out.

    Args:
        lr: learning rate, of embeddings .8 times that; None leaves it to the optimizer, for all the same.
        weight_decay: of embeddings 1.5 times that, of norms none; None leaves it to the optimizer, but for norms.
        kinds: `alpha`, `n_bands`, `lr_scale` or `decay_scale` of single kinds, before all else; None leaves it.
        alpha, n_bands: for all kinds alike; those that an optimizer is given are for groups without their own.

    Raises:
        UserError: a kind or a setting is none of these, or no number of 0 or more, or a parameter has no shape yet.
    """
    for key, value in (("lr", lr), ("weight_decay", weight_decay)):
        check_number(key, value, NON_NEGATIVE)
    owns = _checked(kinds or {})
    owned, groups = _sorted(model), []
    settings = {
        key: value for key, value in (("alpha", alpha), ("n_bands", n_bands)) if value is not None
    }
    for kind, usual in SETTINGS.items():
        own = owns.get(kind, {})
        lr_scale = own.pop("lr_scale", LR_SCALE.get(kind, 1.0))
        decay_scale = own.pop("decay_scale", DECAY_SCALE.get(kind, 1.0))
        group: dict[str, Any] = {"params": owned[kind], "kind": kind, **usual, **settings, **own}
        if lr is not None:
            group["lr"] = lr * lr_scale
        if weight_decay is not None or kind == "norm":
            group["weight_decay"] = (weight_decay or 0.0) * decay_scale
        if group["params"]:
            groups.append(group)
    return groups


def group_settings(optim: Mapping[str, Any]) -> dict[str, Any]:
    """What `parameter_groups` is told: learning rate and decay, and what else the user set for all kinds alike."""
    if "base" in optim:  # wrapped around another, which it builds by name
        rate = next((optim[key] for key in ("lr", "base_lr") if optim[key] is not None), None)
        usual = hyperparameters(get("optim", optim["base"]))
        optim = {"name": optim["base"], "lr": usual["lr"].default if rate is None else rate}
        optim |= {"weight_decay": usual["weight_decay"].default} if "weight_decay" in usual else {}
    known = hyperparameters(get("optim", optim["name"]))
    chosen = {
        key
        for key in ("alpha", "n_bands")
        if key in known and optim.get(key, known[key].default) != known[key].default
    }
    settings = {key: optim[key] for key in {"lr", "weight_decay", *chosen} if key in optim}
    for key in ("lr", "weight_decay"):
        check_number(f"optim.{key}", settings.get(key), NON_NEGATIVE)
    # the first of betas is what an alpha is to others
    if "betas" in optim and optim["betas"][0] != known["betas"].default[0]:
        settings["alpha"] = optim["betas"][0]
    return settings


def _checked(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What is set of each kind."""
    for kind, own in kinds.items():
        if kind not in SETTINGS:
            raise UserError(f"kinds.{kind}: no such kind{suggest(kind, SETTINGS)}")
        if not isinstance(own, Mapping | None):
            raise UserError(f"kinds.{kind}={own} must be a mapping of {', '.join(OWN)}")
        for key, value in (own or {}).items():
            if key not in OWN:
                raise UserError(f"kinds.{kind}.{key}: no such setting{suggest(key, OWN)}")
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise UserError(f"kinds.{kind}.{key}={value} must be a number of 0 or more")
            check_number(f"kinds.{kind}.{key}", value, NON_NEGATIVE)
    return {
        kind: {key: x for key, x in (own or {}).items() if x is not None}
        for kind, own in kinds.items()
    }


def _sorted(model: nn.Module) -> dict[Kind, list[nn.Parameter]]:
    """What is trained, by the kind of who owns it first."""
    owners: dict[nn.Parameter, Kind] = {}
    for parameter, kind in _owned(model, None):
        if parameter.requires_grad:
            owners.setdefault(parameter, kind)
    return {kind: [p for p in owners if owners[p] == kind] for kind in SETTINGS}


def _owned(module: nn.Module, inherited: Kind | None) -> Iterator[tuple[nn.Parameter, Kind]]:
    """Every parameter under the module with its kind."""
    named = getattr(type(module), "kind", None)
    kind = named if isinstance(named, str) and named in SETTINGS else inherited
    if kind is None:
        kind = next((kind for kind, types in TYPES.items() if isinstance(module, types)), None)
    for parameter in module.parameters(recurse=False):
        if isinstance(parameter, UninitializedParameter):
            raise UserError(
                f"a {type(module).__name__} has no shape yet: run the model once before it is sorted"
            )
        vector = parameter.ndim < 2 or isinstance(module, TYPES["norm"])
        yield parameter, "norm" if vector else kind or "other"
    for child in module.children():
        yield from _owned(child, kind)
