"""What a run says of itself: its parts and their cost, its parameter groups, and at the end what one can do next."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from famx import registry
from famx.config.command import format_command
from famx.config.schema import flatten
from famx.model import layer_choices
from famx.monitoring.metrics import room_by_module
from famx.notation import SAMPLE_RATE
from famx.registry import LAYER_ROOMS
from famx.training.evaluate import Evaluation

SECTIONS = (*registry.ROOMS, "model", "trainer", "loader", "kinds")


def model_table(
    config: Mapping[str, Any], model: nn.Module, dataset: Any, device: torch.device
) -> Table:
    """Parts, parameters, and the cost of a second of audio (of a token of text)."""
    table = Table(title=f"famx {config['name']} on {device.type}", title_justify="left")
    for column, justify in (("room", "left"), ("part", "left"), ("parameters", "right")):
        table.add_column(column, justify=justify)
    counts: dict[str, int] = {}
    for name, room in room_by_module(model).items():
        count = sum(p.numel() for p in model.get_submodule(name).parameters(recurse=False))
        counts[room] = counts.get(room, 0) + count
    for room in registry.ROOMS:
        if (name := part_names(config)[room]) != "usual":
            table.add_row(room, name, f"{counts.get(room, 0):,}" if counts.get(room) else "")
    # no recording is decoded for it, since the first may be one that is left out
    silence = (
        torch.zeros(1, round(dataset.lengths[0] * SAMPLE_RATE))
        if dataset.unit == "seconds"
        else None
    )
    example = (dataset[0].signal[None] if silence is None else silence).to(device)
    # fused attention is not counted on every device, its plain form is
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.eval()(example[:, :-1] if dataset.unit == "tokens" else example)
    flops = counter.get_total_flops() / dataset.lengths[0]
    table.add_section()
    table.add_row(
        "all", f"{flops / 1e6:.1f} MFLOP a {dataset.unit.rstrip('s')}", f"{sum(counts.values()):,}"
    )
    hours = (
        f"{sum(dataset.lengths) / 3600:.2f} hours"
        if dataset.unit == "seconds"
        else f"{sum(dataset.lengths):,.0f} tokens"
    )
    table.add_row("train", f"{len(dataset)} examples, {hours}", "")
    return table


def part_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The part of each room; of the rooms that layers are made of, all that some layer wears."""
    worn = {
        room: {choice[room]["name"] for choice in layer_choices(config)} for room in LAYER_ROOMS
    }
    return {
        room: "+".join(sorted(worn.get(room) or {config[room]["name"]})) for room in registry.ROOMS
    }


def param_group_table(optimizer: torch.optim.Optimizer, folder: Path) -> Table:
    """The optimizer's groups that have parameters, a line each; also written into the folder as `groups.tsv`."""
    columns = ("kind", "tensors", "parameters", "lr", "weight_decay", "alpha", "n_bands")
    rows = []
    for group in [group for group in optimizer.param_groups if group["params"]]:
        counts = {
            "tensors": len(group["params"]),
            "parameters": sum(p.numel() for p in group["params"]),
        }
        # the alpha and n_bands of a group are of no use to an optimizer that knows neither
        own = {
            key: group[key]
            for key in columns
            if key in group and (key in optimizer.defaults or key == "kind")
        }
        rows.append([str(value) for value in ({**own, **counts}.get(key, "") for key in columns)])
    lines = [columns, *rows]
    (folder / "groups.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    table = Table(title="parameter groups", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "kind" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def print_next_commands(console: Console, folder: Path, scored: dict[str, Evaluation]) -> None:
    """Says how it went, where it lies, and what one can do next."""
    for split, found in scored.items():
        console.print(found.table(split))
    console.print(f"run: {folder}", highlight=False, soft_wrap=True)
    speech = any(found.scores for found in scored.values())
    commands = [
        format_command("evaluate", str(folder)),
        shlex.join(["tensorboard", "--logdir", str(folder.parent)]),
    ]
    if speech:
        commands.insert(1, format_command("transcribe", str(folder), "FILE..."))
    if (folder.parent / "multirun.yaml").exists():
        commands.append(shlex.join(["python", "-m", "famx.compare", str(folder.parent)]))
    console.print("\n  ".join(["next:", *commands]), highlight=False, soft_wrap=True, markup=False)


def hparams(config: Mapping[str, Any]) -> dict[str, Any]:
    """What TensorBoard compares runs by: the parts, among them those of layers, the seed, and all that is set."""
    each = (leaf for section in SECTIONS for leaf in flatten(config[section], section))
    told = {
        key: value for key, value in each if value not in (None, {}) and not key.endswith(".layers")
    }
    plain = {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in told.items()
    }
    return part_names(config) | {"seed": config["seed"]} | plain
