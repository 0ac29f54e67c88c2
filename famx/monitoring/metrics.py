"""Reads what parts expose; parts never know who reads.

A part that has something to show keeps `observed` (read it, never set it) and fills `metrics` with tensors on their
own device while it is set: 0-d for a curve, 1-d for a histogram or one column of a heat map, 2-d for a stack of those.
A metric `over_time/...` is a picture, (rows, time), of the last sample of the batch; in plain order that is the longest
of its batch, and nothing of it is padding. What is to be paid for, `Costly` parts tell the trainer by `penalty`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.nn.hooks import set_observed
from famx.registry import room_of


class HeatMap(NamedTuple):
    """A matrix to be drawn, a name for each row, and what the columns are."""

    values: Float[Tensor, "rows columns"]
    rows: tuple[str, ...]
    columns: str


def observe_last_batch(module: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, the last of which every part inside `module` is asked to fill its metrics from."""
    held: list[Any] = []
    for batch in batches:
        yield from held
        held = [batch]
    set_observed(module, True)
    yield from held
    set_observed(module, False)


def module_metrics(model: nn.Module) -> dict[str, Tensor]:
    """What the parts of a model show, as `room/metric`: the mean over parts, all where their sizes differ."""
    shown = {tag: list(parts.values()) for tag, parts in _shown(model, pictures=False).items()}
    return {
        tag: torch.stack(values).float().mean(0)
        if len({value.shape for value in values}) == 1
        else torch.cat([value.flatten() for value in values])
        for tag, values in shown.items()
    }


def module_images(model: nn.Module) -> dict[str, HeatMap]:
    """The pictures that the parts of a model show, as `room/over_time/metric`, one layer's rows after another's."""
    pictures = {}
    for tag, parts in _shown(model, pictures=True).items():
        values = torch.cat(list(parts.values())).float().cpu()
        rows = tuple(f"{part} {i + 1}" for part, value in parts.items() for i in range(len(value)))
        if rows:
            pictures[tag] = HeatMap(
                values, rows, f"positions 1 to {values.shape[1]} of one example"
            )
    return pictures


def room_by_module(model: nn.Module) -> dict[str, str]:
    """Of every module of a model, by its name: the room of its class, or else of what it is inside, else `model`."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        found[name] = room_of(type(module)) or found.get(name.rpartition(".")[0], "model")
    return found


def _shown(model: nn.Module, pictures: bool) -> dict[str, dict[str, Tensor]]:
    """By tag and the name of the part."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, room in room_by_module(model).items():
        for name, value in getattr(model.get_submodule(part), "metrics", {}).items():
            if name.startswith("over_time/") == pictures:
                found.setdefault(f"{room}/{name}", {})[part] = value
    return found


def to_host(**sources: Any) -> dict[str, float | Tensor]:
    """All `metrics` of the named sources, as `name/metric`, in one copy from the device.

    A source is anything with `metrics: dict[str, Tensor]`, or such a dict itself. 0-d tensors come back as floats.
    """
    metrics: dict[str, Tensor] = {}
    for name, source in sources.items():
        found: Mapping[str, Tensor] = source if isinstance(source, Mapping) else source.metrics
        metrics |= {f"{name}/{key}": value.detach() for key, value in found.items()}
    if not metrics:
        return {}
    device = next(iter(metrics.values())).device
    flat = torch.cat([value.to(device).float().flatten() for value in metrics.values()]).cpu()
    parts = flat.split([value.numel() for value in metrics.values()])
    return {
        key: part.item() if value.ndim == 0 else part.view(value.shape)
        for (key, value), part in zip(metrics.items(), parts, strict=True)
    }
