"""Reads the metrics that parts report; parts never know who reads them.

A part that reports metrics is `famx.nn.hooks.Observed`: while its `observed` is True, it fills
`metrics` with tensors on its own device, each of which becomes the TensorBoard tag `room/metric`.
For a picture, a part fills a 2-d metric. A metric `metrics["over_time/NAME"]` has the axes (rows,
time) of the last sample of the batch; in the default order this sample is the longest of its batch,
so it has no padding. No other code has to be changed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.nn.hooks import Observed, UsesMomentumRule
from famx.registry import room_of

OVER_TIME = "over_time/"


class RowGroup(NamedTuple):
    """Successive rows of a heat map under a common title.

    Args:
        title: title of the rows.
        size: number of rows.
        columns: names of the columns in these rows, from the first; empty for none.
    """

    title: str
    size: int
    columns: tuple[str, ...] = ()


class HeatMap(NamedTuple):
    """A matrix to be drawn.

    Args:
        values: the matrix; NaN where it is not defined.
        rows: names of the rows.
        columns: short description of the columns.
        groups: groups of all rows, in their order; empty for rows without titles.
        mark: a value to be marked on the colour bar, and its name.
    """

    values: Float[Tensor, "rows columns"]
    rows: tuple[str, ...]
    columns: str
    groups: tuple[RowGroup, ...] = ()
    mark: tuple[float, str] | None = None


def module_metrics(model: nn.Module) -> dict[str, Tensor]:
    """Returns the metrics of the parts inside a model as `room/metric`, except those over time.

    0-d and 1-d metrics of several parts are averaged, or joined if their sizes differ. Matrices are
    never averaged: each part's matrix is a separate metric, `room/metric/part`, where part is the
    name of its module. A matrix that only one part reports is `room/metric`.
    """
    metrics: dict[str, Tensor] = {}
    for tag, values_by_part in _metrics_by_tag(model, over_time=False).items():
        # a mean of matrices, such as of attention maps, would show none of them
        vectors = [value for value in values_by_part.values() if value.ndim < 2]
        matrices = {part: value for part, value in values_by_part.items() if value.ndim >= 2}
        if vectors:
            metrics[tag] = _mean_or_joined(vectors)
        for part, matrix in matrices.items():
            is_only_one = len(values_by_part) == 1
            metrics[tag if is_only_one else f"{tag}/{part or 'model'}"] = matrix
    return metrics


def module_images(model: nn.Module) -> dict[str, HeatMap]:
    """Returns the metrics over time of the parts inside a model as `room/over_time/metric`.

    The rows of all parts that report the metric are stacked, each named by its module.
    """
    images = {}
    for tag, values_by_part in _metrics_by_tag(model, over_time=True).items():
        # rows are named by the part and counted from 1
        rows = []
        for part, value in values_by_part.items():
            rows += [f"{part} {i + 1}" for i in range(len(value))]
        if not rows:
            continue
        # a part may see fewer positions than others; later positions are not defined
        length = max(value.shape[1] for value in values_by_part.values())
        matrices = []
        for value in values_by_part.values():
            matrices.append(pad(value.float(), (0, length - value.shape[1]), value=torch.nan))
        columns = f"positions 1 to {length} of one example"
        images[tag] = HeatMap(torch.cat(matrices).cpu(), tuple(rows), columns)
    return images


def optimizer_metrics(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns an optimizer's own metrics as `optim/metric`, and those of its momentum rule.

    The rule and its spectrum are parts of other rooms: `momentum/metric`, `spectrum/metric`.
    """
    metrics: dict[str, Tensor] = {}
    if isinstance(optimizer, Observed):
        for name, value in optimizer.metrics.items():
            metrics[f"optim/{name}"] = value
    if isinstance(optimizer, UsesMomentumRule):
        metrics |= module_metrics(optimizer.rule)
    return metrics


def room_by_module(model: nn.Module) -> dict[str, str]:
    """Returns the room of every module of a model, by the module's name.

    It is the room of the module's class, else that of the module that contains it, else `model`.
    """
    rooms: dict[str, str] = {}
    for name, module in model.named_modules():
        # modules come before those that they contain
        parent = name.rpartition(".")[0]
        rooms[name] = room_of(type(module)) or rooms.get(parent, "model")
    return rooms


def to_host(metrics: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
    """Returns 0-d metrics as floats and others as fp32 tensors on the CPU, all in one copy."""
    if not metrics:
        return {}
    # one copy of all numbers to the host
    values = [value.detach() for value in metrics.values()]
    device = values[0].device
    joined = torch.cat([value.to(device).float().flatten() for value in values]).cpu()
    parts = joined.split([value.numel() for value in values])
    # split into the metrics again
    on_host: dict[str, float | Tensor] = {}
    for name, value, part in zip(metrics, values, parts, strict=True):
        on_host[name] = part.item() if value.ndim == 0 else part.view(value.shape)
    return on_host


def _metrics_by_tag(model: nn.Module, over_time: bool) -> dict[str, dict[str, Tensor]]:
    """Returns `room/metric` -> the name of each module that reports it -> its value.

    Args:
        over_time: whether to return the metrics over time, or all others.
    """
    by_tag: dict[str, dict[str, Tensor]] = {}
    for part, room in room_by_module(model).items():
        module = model.get_submodule(part)
        if not isinstance(module, Observed):
            continue
        for name, value in module.metrics.items():
            if name.startswith(OVER_TIME) == over_time:
                by_tag.setdefault(f"{room}/{name}", {})[part] = value
    return by_tag


def _mean_or_joined(values: list[Tensor]) -> Tensor:
    """Returns the mean of tensors with equal shapes, or joins tensors with different shapes."""
    if len({value.shape for value in values}) == 1:
        return torch.stack(values).float().mean(0)
    return torch.cat([value.flatten() for value in values])
