"""Checkpoints of safetensors and JSON: written atomically, verified on load, never unpickled."""

import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from famx import files
from famx.notation import UserError
from famx.training.manifest import RunFiles, find_damage, is_intact, read_manifest, write_manifest
from famx.training.tree import MALFORMED, describe, first_nan, flatten, unflatten

log = logging.getLogger(__name__)

CHECKED = ("model", "averaged", "optimizer")  # trees that must not contain a NaN
NO_SPACE = ("No space left", "File too large", "quota exceeded")  # messages of the system
FOLDER = re.compile(r"step-([0-9]{1,18})")
REPLACED = re.compile(r"\.step-([0-9]{1,18})\.old")


class _DamageError(Exception):
    """A checkpoint cannot be used; the message says why."""


def save(
    folder: Path,
    step: int,
    score: float | None,
    run_files: RunFiles | None = None,
    **trees: Any,
) -> Path:
    """Writes `folder/step-N` completely or not at all; keeps the two newest and the best.

    At each instant there is one complete checkpoint of a step that has been saved before.

    Args:
        folder: folder of all checkpoints of a run.
        score: score on dev, lower is better; None if this step was not evaluated.
        run_files: accepted digests of files of the run, by name, for the manifest.
        trees: nested dicts, lists and tuples of tensors, numbers, strings and None. The tensors of
            each go to `<name>.safetensors`, everything else to `state.json`.

    Raises:
        UserError: the disk is full, or a weight is not a number; earlier checkpoints remain.
    """
    target = folder / f"step-{step}"
    temporary = folder / f".step-{step}.tmp"
    _remove_remains(folder)
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, step, score, run_files or {}, trees)
        _replace(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        is_full = isinstance(error, OSError) and error.errno in files.NO_SPACE
        # errors of safetensors contain only the message of the system
        if is_full or any(message in str(error) for message in NO_SPACE):
            reason = error.strerror if isinstance(error, OSError) else str(error)
            remaining = _folders(folder)
            still = "earlier checkpoints still load" if remaining else "there is no earlier one"
            raise UserError(
                f"the disk is full or the file too large ({reason}): step {step} could not be "
                f"saved to {folder}, {still}"
            ) from error
        raise
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(folder)
    return target


def _write_files(
    folder: Path,
    step: int,
    score: float | None,
    run_files: RunFiles,
    trees: Mapping[str, Any],
) -> None:
    """Writes the tensors of each tree, the state and the manifest, through to the disk."""
    state: dict[str, Any] = {"step": step, "score": score}
    for name, tree in trees.items():
        tensors: dict[str, Tensor] = {}
        state[name] = flatten(tree, "", tensors)
        bad = first_nan(tensors) if name in CHECKED else None
        if bad is not None:
            raise UserError(
                f"step {step} is not saved, since {name}.{bad} is not finite; the run keeps its "
                "checkpoints of earlier steps: choose a smaller optim.lr"
            )
        if tensors:
            save_file(tensors, folder / f"{name}.safetensors")
    # the manifest lists everything else
    (folder / "state.json").write_text(json.dumps(state))
    write_manifest(folder, run_files)
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _replace(temporary: Path, target: Path) -> None:
    """Renames a complete checkpoint to its final name, and removes the one that it replaces.

    Between the two renames, the former checkpoint is complete under the name that `_folders` knows.
    """
    replaced = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(replaced)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_remains(folder: Path) -> None:
    """Restores or removes what a process left that was killed while it saved."""
    for path in folder.glob(".step-*.old"):
        final = folder / path.name.removeprefix(".").removesuffix(".old")
        if REPLACED.fullmatch(path.name) and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def load(folder: Path, which: str = "last", device: str = "cpu") -> dict[str, Any]:
    """Reads the newest (`last`) or the `best` complete checkpoint: its trees, `step` and `score`.

    Every file is verified against the manifest. A checkpoint that is damaged or contains a NaN is
    skipped with a warning.

    Raises:
        UserError: there is no complete checkpoint.
    """
    # the newest first
    folders = _folders(folder)
    newest = sorted(folders, reverse=True)
    candidates = [*_by_score(folders), *newest] if which == "best" else newest
    reasons = []
    for step in dict.fromkeys(candidates):
        path = folders[step]
        try:
            saved = _read_files(path, step, device)
        except _DamageError as error:
            reasons.append(f"{path} is damaged ({error})")
            log.warning("%s, falling back to an older checkpoint", reasons[-1])
            continue
        if reasons:
            log.warning("%s is used in its place", path)
        return saved
    first = f": {reasons[0]}" if reasons else ""
    raise UserError(f"{folder} holds no complete checkpoint{first}")


def _by_score(folders: Mapping[int, Path]) -> list[int]:
    """Lists the evaluated steps from the best score to the worst, newer ones first."""
    scored = [(_score(path), -step) for step, path in folders.items()]
    ranked = sorted((score, step) for score, step in scored if score is not None)
    return [-step for _, step in ranked]


def _read_files(path: Path, step: int, device: str) -> dict[str, Any]:
    """Reads a checkpoint; raises a `_DamageError` if it is not a complete one of this step."""
    damage = find_damage(path)
    if damage:
        raise _DamageError(damage)
    try:
        state = json.loads((path / "state.json").read_text())
        for name in state.keys() - {"step", "score"}:
            file = path / f"{name}.safetensors"
            tensors = load_file(file, device=device) if file.exists() else {}
            state[name] = unflatten(state[name], tensors)
            bad = first_nan(tensors) if name in CHECKED else None
            if bad is not None:
                raise _DamageError(f"{name}.{bad} is not finite")
        if state["step"] != step:
            raise _DamageError(f"state.json is of step {state['step']}")
        _require_score(state["score"])
    except (*MALFORMED, OSError, SafetensorError) as error:
        files.require_handles(error, path)
        raise _DamageError(f"{type(error).__name__}: {error}") from error
    return state


def _require_score(score: object) -> None:
    if score is not None and (type(score) not in (int, float) or math.isnan(score)):  # type: ignore[arg-type]
        raise ValueError(f"its score is {score!r}")


def load_weights(model: nn.Module, saved: Mapping[str, Any], source: object) -> None:
    """Loads the averaged weights of a checkpoint, or else its plain weights, into the model.

    Args:
        source: origin of the checkpoint, for the error message.

    Raises:
        UserError: the weights belong to another model, or are infinite.
    """
    weights = evaluated_weights(saved, source)
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys(), key=str):
        there = describe(weights[name]) if name in weights else "absent"
        here = describe(expected[name]) if name in expected else "absent"
        if there != here:
            raise UserError(
                f"{source} is a checkpoint of another model: {name} is {there} there, "
                f"{here} in this one"
            )
    for name, _ in model.named_parameters():
        if not weights[name].isfinite().all():
            raise UserError(f"{source} is a checkpoint of weights that are not finite: {name}")
    model.load_state_dict(weights)


def evaluated_weights(saved: Mapping[str, Any], source: object) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint that were evaluated: averaged ones, if there are any.

    Raises:
        UserError: there are none.
    """
    weights = _averaged_weights(saved) or saved.get("model")
    if not isinstance(weights, dict):
        raise UserError(f"{source} is a checkpoint without weights of a model")
    return weights


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Checks the parameters before they are saved, in one device copy.

    Raises:
        UserError: a parameter is not finite; the message names it.
    """
    parameters = dict(model.named_parameters())
    if not parameters:
        return
    # the largest magnitude of a tensor is finite only if all of it is
    largest = torch._foreach_norm([p.detach() for p in parameters.values()], math.inf)
    magnitudes = torch.stack([value.float().to(largest[0].device) for value in largest]).tolist()
    for name, magnitude in zip(parameters, magnitudes, strict=True):
        if not math.isfinite(magnitude):
            raise UserError(
                f"step {step} is not saved, since the weight {name} is not finite; the run keeps "
                "its checkpoints of earlier steps: choose a smaller optim.lr"
            )


def _averaged_weights(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the saved average under the model's own names; nothing if it is empty."""
    averaged = saved.get("averaged")
    if not isinstance(averaged, dict):
        return {}
    weights = {str(name).removeprefix("module."): tensor for name, tensor in averaged.items()}
    n_averaged = weights.pop("n_averaged", None)
    is_empty = isinstance(n_averaged, Tensor) and not n_averaged.any()
    return {} if is_empty else weights


def describe_weights(saved: Mapping[str, Any]) -> str:
    """Returns which weights of a checkpoint `load_weights` loads: their step, and their average."""
    step = f"step {saved['step']}"
    if not _averaged_weights(saved):
        return step
    return f"{step}, averaged over {int(saved['averaged']['n_averaged'])} steps"


# folders and scores


def all_folders(folder: Path) -> list[Path]:
    """Lists the folders of all checkpoints, the newest first."""
    folders = _folders(folder)
    return [folders[step] for step in sorted(folders, reverse=True)]


def _folders(folder: Path) -> dict[int, Path]:
    """Returns the folders of checkpoints by step, also of one that was being replaced."""
    folders: dict[int, Path] = {}
    for pattern in (REPLACED, FOLDER):
        for path in folder.iterdir() if folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match:
                folders[int(match[1])] = path
    return folders


def _score(path: Path) -> float | None:
    """Returns the score of a checkpoint; None without one, and if the file is not as saved."""
    if not is_intact(path, "state.json", read_manifest(path)):
        return None
    try:
        score = json.loads((path / "state.json").read_text())["score"]
        _require_score(score)
    except (*MALFORMED, OSError):
        return None
    return score


def _prune(folder: Path) -> None:
    """Removes all checkpoints but the two newest and the best; damaged ones do not count."""
    folders = _folders(folder)
    newest = _first_complete(sorted(folders, reverse=True), folders, 2)
    best = _first_complete(_by_score(folders), folders, 1)
    for step, path in folders.items():
        # damaged checkpoints of later steps stay until those steps are saved again
        if newest and step < newest[-1] and step not in best:
            shutil.rmtree(path)


def _first_complete(steps: Iterable[int], folders: Mapping[int, Path], count: int) -> list[int]:
    """Returns the first `count` steps whose checkpoints are complete."""
    complete = (step for step in steps if find_damage(folders[step]) is None)
    return list(itertools.islice(complete, count))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
