"""Checkpoints of safetensors and JSON: written atomically, verified on load, never unpickled."""

import errno
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from famx.notation import UserError

log = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def save(folder: Path, step: int, score: float | None, **trees: Any) -> Path:
    """Writes `folder/step-N` completely or not at all; keeps the two newest and the best.

    Args:
        folder: folder of all checkpoints of a run.
        score: score on dev, lower is better; None if this step was not evaluated.
        trees: nested dicts, lists and tuples of tensors, numbers, strings and None. The tensors of
            each go to `<name>.safetensors`, everything else to `state.json`.

    Raises:
        UserError: the disk is full; earlier checkpoints can still be loaded.
    """
    target = folder / f"step-{step}"
    temporary = folder / f".step-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, step, score, trees)
        # a rename is atomic, so a crash leaves a complete checkpoint or none
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        is_full = isinstance(error, OSError) and error.errno in DISK_FULL
        # errors of safetensors contain only the message of the system
        if is_full or "No space left" in str(error):
            raise UserError(
                f"the disk is full: step {step} could not be saved to {folder}, "
                "earlier checkpoints still load"
            ) from error
        raise
    _prune(folder)
    return target


def _write_files(folder: Path, step: int, score: float | None, trees: Mapping[str, Any]) -> None:
    """Writes the tensors of each tree, the state and the manifest, through to the disk."""
    state: dict[str, Any] = {"step": step, "score": score}
    for name, tree in trees.items():
        tensors: dict[str, Tensor] = {}
        state[name] = _flatten(tree, "", tensors)
        if tensors:
            save_file(tensors, folder / f"{name}.safetensors")
    # the manifest lists everything else
    (folder / "state.json").write_text(json.dumps(state))
    manifest = {
        file.name: {"size": file.stat().st_size, "sha256": _digest(file)}
        for file in sorted(folder.iterdir())
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in folder.iterdir():
        _sync(file)


def load(folder: Path, which: str = "last", device: str = "cpu") -> dict[str, Any]:
    """Reads the newest (`last`) or the `best` complete checkpoint: its trees, `step` and `score`.

    Every file is verified against the manifest; a damaged checkpoint is skipped with a warning.

    Raises:
        UserError: there is no complete checkpoint.
    """
    # the newest first
    candidates = list(reversed(_steps(folder)))
    if which == "best":
        # evaluated steps come first, ordered by score and then from new to old
        scored = [(_score(folder, step), -step) for step in candidates]
        ranked = sorted((score, step) for score, step in scored if score is not None)
        candidates = [-step for _, step in ranked] + candidates
    for step in candidates:
        path = folder / f"step-{step}"
        damage = _find_damage(path)
        if damage:
            log.warning("%s is damaged (%s), falling back to an older checkpoint", path, damage)
            continue
        return _read_files(path, device)
    raise UserError(f"{folder} holds no complete checkpoint")


def _read_files(path: Path, device: str) -> dict[str, Any]:
    state = json.loads((path / "state.json").read_text())
    for name in state.keys() - {"step", "score"}:
        file = path / f"{name}.safetensors"
        tensors = load_file(file, device=device) if file.exists() else {}
        state[name] = _unflatten(state[name], tensors)
    return state


def load_weights(model: nn.Module, saved: Mapping[str, Any], source: object) -> None:
    """Loads the averaged weights of a checkpoint, or else its plain weights, into the model.

    Args:
        source: origin of the checkpoint, for the error message.

    Raises:
        UserError: the weights belong to another model.
    """
    weights = evaluated_weights(saved)
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        saved_shape = _shape_of(weights, name)
        expected_shape = _shape_of(expected, name)
        if saved_shape != expected_shape:
            raise UserError(
                f"{source} is a checkpoint of another model: {name} is {saved_shape} there, "
                f"{expected_shape} in this one"
            )
    model.load_state_dict(weights)


def evaluated_weights(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint that were evaluated: averaged ones, if there are any."""
    return _averaged_weights(saved) or saved["model"]


def _averaged_weights(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights that torch's AveragedModel saved, under the model's own names."""
    averaged = dict(saved.get("averaged", {}))
    averaged.pop("n_averaged", None)
    return {name.removeprefix("module."): tensor for name, tensor in averaged.items()}


def _shape_of(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(weights[name].shape) if name in weights else "absent"


def _flatten(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Converts a tree to JSON; moves its tensors into `tensors` by their paths, each once."""
    if isinstance(tree, Tensor):
        # tied weights are saved once
        for name, tensor in tensors.items():
            if tensor is tree or _shares_memory(tensor, tree):
                return {"tensor": name}
        tensors[path] = tree.detach().contiguous()
        return {"tensor": path}
    # JSON has only string keys, so a dict becomes a list of pairs
    if isinstance(tree, dict):
        pairs = []
        for key, value in tree.items():
            pairs.append([key, _flatten(value, f"{path}.{key}".lstrip("."), tensors)])
        return {"dict": pairs}
    if isinstance(tree, list | tuple):
        items = []
        for i, value in enumerate(tree):
            items.append(_flatten(value, f"{path}.{i}".lstrip("."), tensors))
        return {type(tree).__name__: items}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(
        f"a checkpoint holds tensors, numbers and strings, not {type(tree).__name__} at {path}"
    )


def _unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverts `_flatten`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in value}
    items = [_unflatten(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    same_start = a.numel() > 0 and a.data_ptr() == b.data_ptr()
    return same_start and a.shape == b.shape and a.dtype == b.dtype


def _find_damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint, None if it is complete."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, entry in manifest.items():
            file = path / name
            if file.stat().st_size != entry["size"] or _digest(file) != entry["sha256"]:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    if "state.json" not in manifest:
        return "manifest.json does not name state.json"
    return None


def _steps(folder: Path) -> list[int]:
    """Lists the steps that have a checkpoint, oldest first."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def _score(folder: Path, step: int) -> float | None:
    try:
        return json.loads((folder / f"step-{step}" / "state.json").read_text())["score"]
    except (OSError, ValueError, KeyError):
        return None


def _prune(folder: Path) -> None:
    """Removes all checkpoints but the two newest and the best."""
    steps = _steps(folder)
    scores = {step: _score(folder, step) for step in steps}
    evaluated = [(score, step) for step, score in scores.items() if score is not None]
    best_step = min(evaluated)[1] if evaluated else None
    # the two newest, in case the last one is damaged
    for step in steps[:-2]:
        if step != best_step:
            shutil.rmtree(folder / f"step-{step}")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rng_state() -> dict[str, Any]:
    """Returns the state of every global random generator, as a tree that `save` accepts."""
    legacy = numpy.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    # safetensors has no unsigned 32-bit type
    numpy_state = {
        "key": torch.from_numpy(legacy["state"]["key"].astype("int64")),
        "pos": legacy["state"]["pos"],
        "has_gauss": legacy["has_gauss"],
        "gauss": legacy["gauss"],
    }
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy_state}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    saved = state["numpy"]
    numpy.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": saved["key"].numpy().astype("uint32"), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
