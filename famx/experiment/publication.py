"""A run as one folder to publish: weights, config, tokenizer, scores, and a card written from them.

The folder is a run that `famx.load` reads, with the weights of one checkpoint, and without what
belongs to the machine that trained it: paths, logs, the command line, the state of the optimizer.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from famx import files
from famx.config.schema import DEFAULT
from famx.experiment.build import Experiment
from famx.experiment.program import ONNX, PROGRAM
from famx.experiment.resolve import SECTIONS_WITH_PATHS, path_options
from famx.registry import ROOMS, get
from famx.training import checkpoint
from famx.training.checkpoint import evaluated_weights
from famx.training.provenance import version_of
from famx.training.run_dir import RunDir

CARD = "README.md"


def publish(
    source: RunDir, experiment: Experiment, checkpoint_name: str, parts: list[Path], target: Path
) -> None:
    """Writes the folder of a run to publish.

    Args:
        source: folder of the run.
        experiment: its model, on the CPU.
        checkpoint_name: `best` on dev, or `last`.
        parts: files of the user's parts, which are copied.
        target: new folder; it must exist and hold nothing but the programs of the model.

    Raises:
        UserError: a checkpoint cannot be read, or the disk is full.
    """
    saved = checkpoint.load(source.require_checkpoints(), checkpoint_name)
    trained = source.load_config()
    config = without_paths(trained)
    run_dir = RunDir(target)
    # the model
    run_dir.save_setup(config, experiment.tokenizer)
    weights = evaluated_weights(saved, source)
    checkpoint.save(
        run_dir.checkpoints, saved["step"], saved["score"], run_dir.digests(), model=weights
    )
    for part in parts:
        shutil.copyfile(part, target / part.name)
    # its scores, as the run was trained: those of other data or decoders have longer names
    scores = {}
    suffix = "" if checkpoint_name == "best" else f".{checkpoint_name}"
    for split in get("data", config["data"]["name"]).splits:
        file = source.scores_file(f"{split}{suffix}")
        if file.is_file():
            scores[split] = json.loads(file.read_text()) | {"decoder": config["decode"]}
            text = json.dumps(scores[split], indent=1) + "\n"
            files.write_atomic(run_dir.scores_file(f"{split}{suffix}"), text)
    n_parameters = sum(p.numel() for p in experiment.model.parameters())
    paths = []
    for section in SECTIONS_WITH_PATHS:
        paths += [f"{section}.{option}" for option in paths_of(section, trained[section])]
    names = [part.name for part in parts]
    programs = [name for name in (PROGRAM, ONNX) if (target / name).is_file()]
    text = card(config, saved["step"], n_parameters, scores, names, paths, programs)
    files.write_atomic(target / CARD, text)


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config whose paths are names without their folders."""
    published = dict(config)
    for section in SECTIONS_WITH_PATHS:
        values = dict(config[section])
        for option in paths_of(section, values):
            values[option] = Path(values[option]).name
        published[section] = values
    if config["init_from"]:
        published["init_from"] = Path(config["init_from"]).name
    return published


def paths_of(section: str, values: Mapping[str, Any]) -> list[str]:
    """Returns the options of a section of a config that are paths on this machine.

    A name of the hub is none: a run stores the paths of existing files and folders as absolute.
    """
    options = path_options(section, values)
    return [option for option in options if Path(values.get(option) or "").is_absolute()]


def card(
    config: Mapping[str, Any],
    step: int,
    n_parameters: int,
    scores: Mapping[str, Mapping[str, Any]],
    parts: list[str],
    paths: list[str],
    programs: list[str],
) -> str:
    """Returns the text of the card: what the model is, its scores, how to load it.

    Args:
        step: step of the weights.
        scores: content of `scores.<split>.json` by split.
        parts: names of the files of the user's parts.
        paths: options that were paths of the machine that trained it.
        programs: names of the files with the model as a program.
    """
    lines = [f"# {config['name']}", ""]
    lines += [
        f"A model of task `{config['task']['name']}` with {n_parameters:,} parameters, trained for "
        f"{step:,} steps on `data={config['data']['name']}` with famx {version_of('famx')}.",
        "",
    ]
    # the parts
    lines += ["| room | part |", "|---|---|"]
    names = {room: config[room]["name"] for room in ROOMS}
    lines += [f"| {room} | `{name}` |" for room, name in names.items() if name != DEFAULT]
    # the scores
    lines += ["", "## Scores", ""]
    if scores:
        lines += [
            "| split | score | value | 95 % interval | measured with |",
            "|---|---|---|---|---|",
        ]
        lines += [row for split, values in scores.items() for row in _score_rows(split, values)]
        lines += ["", "The interval is over the tested utterances, not over trainings."]
    else:
        lines += ["None has been computed for these weights."]
    # how to load it
    words = ["python -m famx.evaluate .", *(f"{option}=PATH" for option in paths)]
    if parts:
        lines += ["", f"The files {', '.join(parts)} are parts of the model: read them first."]
        words.append(f"famx_parts=[{','.join(parts)}]")
    lines += ["", "## Use", "", "```sh", " ".join(words), "```"]
    if not parts:
        lines += ["", "```python", "import famx", "", 'model = famx.load(".")', "```"]
    return "\n".join([*lines, *_program_lines(config, programs)]) + "\n"


def _program_lines(config: Mapping[str, Any], programs: list[str]) -> list[str]:
    """Returns what a card says of the programs: how they run, and which part of the model it is."""
    if not programs:
        return []
    task = get("task", config["task"]["name"])
    has_scores = task.decoder_kind is None or "frames" in task.other_outputs
    result = "scores" if has_scores else "frames"
    text = f"{_listed(programs)}: `(inputs, lengths) -> ({result}, lengths)`, without famx."
    if task.decoder_kind is not None:
        encoder = "encoder with its CTC scores alone" if has_scores else "encoder alone"
        text += f" It is the {encoder}; the decoder of texts is not in it."
    load = ["import torch", "", f'program = torch.export.load("{PROGRAM}").module()']
    return ["", text, "", "```python", *load, "```"]


def _listed(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _score_rows(split: str, values: Mapping[str, Any]) -> list[str]:
    """Returns a row of the table for each score of a split."""
    decoder = values.get("decoder")
    conditions = [f"{key} {values[key]}" for key in ("normaliser", "precision") if key in values]
    if isinstance(decoder, Mapping):
        conditions.insert(0, _as_words("decode", decoder))
    rows = []
    for name, score in values.items():
        if not isinstance(score, Mapping) or "rate" not in score:
            continue
        bounds = [score["rate"], score["low"], score["high"]]
        is_fraction = score.get("is_fraction", True)
        rate, low, high = (_format(bound, is_fraction) for bound in bounds)
        condition = ", ".join([*conditions, *_signature(score)])
        rows.append(f"| {split} | {name} | {rate} | {low} to {high} | {condition} |")
    return rows


def _signature(score: Mapping[str, Any]) -> list[str]:
    """Returns sacrebleu's settings and version, of scores that have them."""
    # a bar would end the cell
    return [f"sacrebleu {score['signature'].replace('|', ' ')}"] if "signature" in score else []


def _as_words(room: str, choice: Mapping[str, Any]) -> str:
    """Returns a part and its options as the words of a command line."""
    options = [f"{room}.{key}={value}" for key, value in choice.items() if key != "name"]
    return " ".join([f"{room}={choice['name']}", *options])


def _format(value: float | None, is_fraction: bool) -> str:
    if value is None:
        return "?"
    return f"{100 * value:.2f} %" if is_fraction else f"{value:.3f}"
