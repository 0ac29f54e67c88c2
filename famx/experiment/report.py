"""A run's output on the terminal: tables of parts and parameter groups, and next commands."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from famx import files, registry
from famx.config.command import format_command, format_tensorboard, python_command
from famx.config.schema import flatten
from famx.config.sections import FinetuneConfig
from famx.data._normalisers import DESCRIPTIONS
from famx.data.base import Dataset
from famx.experiment.build import Experiment
from famx.model import ModelWithDecoder, layer_choice, layer_choices
from famx.monitoring.metrics import room_by_module
from famx.notation import SAMPLE_RATE, Modality
from famx.registry import LAYER_ROOMS
from famx.training.device import describe_precision, forward_dtype
from famx.training.evaluate import Evaluation

SECTIONS = (*registry.ROOMS, "model", "trainer", "loader", "param_groups")
HOUR = 3600  # seconds
GROUP_COLUMNS = ("kind", "tensors", "parameters", "lr", "weight_decay", "alpha", "n_bands")


def model_table(experiment: Experiment) -> Table:
    """Returns a table of parts and parameters, with the FLOPs per second, token or row."""
    config = experiment.config
    dtype = forward_dtype(config["trainer"]["precision"], experiment.device)
    precision = describe_precision(dtype, experiment.device)
    title = f"famx {config['name']} on {experiment.device.type}, trained in {precision}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("room")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    # one row per room
    counts = _parameters_by_room(experiment)
    for room, name in part_names(config).items():
        if name != "default":
            count = counts.get(room)
            table.add_row(room, name, f"{count:,}" if count else "")
    # the full model and its data
    dataset = experiment.loader("train").dataset
    unit = dataset.modality.unit
    flops = flops_per_unit(experiment)
    table.add_section()
    table.add_row("all", f"{flops / 1e6:,.3g} MFLOP per {unit}", f"{sum(counts.values()):,}")
    for split in dataset.splits:
        table.add_row(split, _describe_split(experiment.loader(split).dataset), "")
    if dataset.modality is Modality.SPEECH:
        loader = experiment.loader("train")
        views = "; two views of each recording" if loader.two_views else ""
        table.add_row("masks", f"{loader.masks}{views}", "")
    if dataset.normaliser in DESCRIPTIONS:
        description = f"{dataset.normaliser}: {DESCRIPTIONS[dataset.normaliser]}"
        table.add_row("texts", description, "")
    return table


def _describe_split(dataset: Dataset) -> str:
    total = sum(dataset.lengths)
    amount = f"{total:,.0f} {dataset.modality.unit}s"
    if dataset.modality is Modality.SPEECH:
        amount = f"{total / HOUR:.2f} hours" if total >= HOUR else f"{total / 60:.1f} minutes"
    if dataset.n_streamed:
        return f"{dataset.n_streamed:,} examples, in windows of some {len(dataset)} ({amount})"
    return f"{len(dataset)} examples, {amount}"


def _parameters_by_room(experiment: Experiment) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, room in room_by_module(experiment.model).items():
        module = experiment.model.get_submodule(name)
        count = sum(p.numel() for p in module.parameters(recurse=False))
        counts[room] = counts.get(room, 0) + count
    return counts


def flops_per_unit(experiment: Experiment) -> float:
    """Counts the FLOPs of a pass in evaluation, per second of audio, token or row.

    A decoder predicts the text of the first example, all of its tokens at once.
    """
    dataset = experiment.loader("train").dataset
    example = _example_input(dataset).to(experiment.device)
    model = experiment.model.eval()
    options = {}
    if isinstance(model, ModelWithDecoder):
        n_tokens = len(experiment.tokenizer.encode(dataset.texts[0]).ids) + 1
        options["text"] = torch.zeros(1, n_tokens, dtype=torch.long, device=experiment.device)
    # plain attention, since fused attention is not counted on every device
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(example, **options)
    return counter.get_total_flops() / dataset.lengths[0]


def _example_input(dataset: Dataset) -> Tensor:
    """Returns an input of the length of the first example.

    For speech it is silence, since the first recording may not be decodable.
    """
    if dataset.modality is Modality.SPEECH:
        return torch.zeros(1, round(dataset.lengths[0] * SAMPLE_RATE))
    # of a block of text the last token is a target only
    return dataset[0].signal[None, : round(dataset.lengths[0])]


def part_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the part of each room; for a room of layers all parts in use, joined by +."""
    names = {room: config[room]["name"] for room in registry.ROOMS}
    layers = layer_choices(config)
    if registry.get("task", names["task"]).decoder_kind == "attention":
        # the layers of the decoder
        layers.append(layer_choice(config, {}))
    for room in LAYER_ROOMS:
        in_layers = {layer[room]["name"] for layer in layers}
        names[room] = "+".join(sorted(in_layers))
    return names


def param_group_table(optimizer: torch.optim.Optimizer, file: Path) -> Table:
    """Returns the optimizer's groups that have parameters; also writes them to a TSV file."""
    # groups may be empty
    rows = []
    for group in optimizer.param_groups:
        if group["params"]:
            rows.append(_param_group_row(group, optimizer))
    # the file, which `famx.compare` reads, then the table
    lines = ["\t".join(row) + "\n" for row in (GROUP_COLUMNS, *rows)]
    files.write_atomic(file, "".join(lines))
    table = Table(title="parameter groups", title_justify="left")
    for column in GROUP_COLUMNS:
        table.add_column(column, justify="left" if column == "kind" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _param_group_row(group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> list[str]:
    """Returns a group's settings; those that its optimizer does not have are left empty."""
    values = {
        "tensors": len(group["params"]),
        "parameters": sum(p.numel() for p in group["params"]),
    }
    for key in GROUP_COLUMNS:
        if key in group and (key in optimizer.defaults or key == "kind"):
            values[key] = group[key]
    # a trainer that resumes has set `lr` to that of its step
    values["lr"] = group.get("initial_lr", group["lr"])
    return [str(values.get(key, "")) for key in GROUP_COLUMNS]


def print_scores(console: Console, evaluations: Mapping[str, Evaluation]) -> None:
    """Prints a table of the scores of each split."""
    for split, evaluation in evaluations.items():
        console.print(evaluation.table(split))


def print_next_commands(console: Console, folder: Path, transcribes: bool) -> None:
    """Prints the run's folder, and the commands that a user may want next.

    Args:
        transcribes: whether the run turns recordings into texts.
    """
    console.print(f"run: {folder}", highlight=False, soft_wrap=True)
    # commands to copy, with the options that this run needs
    commands = [format_command("evaluate", str(folder))]
    if transcribes:
        commands.append(format_command("transcribe", str(folder), "FILE..."))
    commands.append(format_tensorboard(folder.parent))
    if (folder.parent / "multirun.yaml").exists():
        commands.append(shlex.join([python_command(), "-m", "famx.compare", str(folder.parent)]))
    console.print("\n  ".join(["next:", *commands]), highlight=False, soft_wrap=True)


def _as_utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def hparams(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values by which TensorBoard compares runs: parts, seed and all set options.

    Of fine-tuning, those that are not the defaults, and of layers and a pretrained frontend no
    sizes.
    """
    sections = {section: config[section] for section in SECTIONS}
    defaults = vars(FinetuneConfig())
    finetune = {key: x for key, x in config["finetune"].items() if x != defaults[key]}
    options: dict[str, Any] = {"init_from": config["init_from"]} if config["init_from"] else {}
    for section, settings in (sections | {"finetune": finetune}).items():
        for key, value in flatten(settings, section):
            if value in (None, {}) or key.endswith(".layers") or ".architecture." in key:
                continue
            # TensorBoard accepts only plain values, and texts that are UTF-8
            is_plain = isinstance(value, int | float)
            options[key] = value if is_plain else _as_utf8(str(value))
    return part_names(config) | {"seed": config["seed"]} | options
