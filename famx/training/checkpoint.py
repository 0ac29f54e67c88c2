"""Checkpoints that a crash, a full disk or a stranger cannot spoil: safetensors and JSON, verified, never unpickled."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from famx.notation import UserError


def load_weights(model: nn.Module, saved: Mapping[str, Any], source: Any) -> None:
    """Puts the averaged weights of a checkpoint, or its plain ones, into the model.

    Raises:
        UserError: they are another model's.
    """
    averaged = saved.get("averaged", {})
    theirs = {
        key.removeprefix("module."): value for key, value in averaged.items() if key != "n_averaged"
    }
    ours, theirs = model.state_dict(), theirs or saved["model"]
    wrong = sorted(ours.keys() ^ theirs.keys()) or [
        k for k in ours if ours[k].shape != theirs[k].shape
    ]
    if wrong:
        shapes = [
            tuple(tree[wrong[0]].shape) if wrong[0] in tree else "absent" for tree in (theirs, ours)
        ]
        raise UserError(
            f"{source} holds another model: {wrong[0]} is {shapes[0]} there and {shapes[1]} here"
        )
    model.load_state_dict(theirs)


log = logging.getLogger(__name__)


def save(folder: Path, step: int, score: float | None, **trees: Any) -> Path:
    """Writes `folder/step-N`, whole or not at all, and keeps the two newest and the best.

    Args:
        folder: holds all checkpoints of a run.
        score: on dev, lower is better; None where this step was not evaluated.
        trees: nested dicts, lists and tuples of tensors, numbers, strings and None. The tensors of each go to
            `<name>.safetensors`, the rest of all to `state.json`.

    Raises:
        UserError: the disk is full; what was there before still loads.
    """
    target, aside = folder / f"step-{step}", folder / f".step-{step}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        rest: dict[str, Any] = {"step": step, "score": score}
        for name, tree in trees.items():
            tensors: dict[str, Tensor] = {}
            rest[name] = _part(tree, "", tensors)
            if tensors:
                save_file(tensors, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps(rest))
        digests = {
            file.name: {"size": file.stat().st_size, "sha256": _digest(file)}
            for file in sorted(aside.iterdir())
        }
        (aside / "manifest.json").write_text(json.dumps(digests, indent=1))
        for file in aside.iterdir():
            _sync(file)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        full = getattr(error, "errno", None) in (
            errno.ENOSPC,
            errno.EDQUOT,
        ) or "No space left" in str(error)
        if full:
            raise UserError(
                f"the disk is full: step {step} could not be saved to {folder}, older ones still load"
            ) from error
        raise
    _prune(folder)
    return target


def load(folder: Path, which: str = "last", device: str = "cpu") -> dict[str, Any]:
    """The trees of the newest (`last`) or the `best` whole checkpoint, with its `step` and `score`.

    Every file is verified against the manifest; a damaged checkpoint is passed over with a warning.

    Raises:
        UserError: there is none that is whole.
    """
    found = _steps(folder)
    if which == "best":
        scored = [
            (score, -step)
            for step, score in ((step, _score(folder, step)) for step in found)
            if score is not None
        ]
        found += [-step for _, step in sorted(scored, reverse=True)]
    for step in reversed(found):
        path = folder / f"step-{step}"
        if wrong := _damage(path):
            log.warning("%s is damaged (%s), falling back to an older checkpoint", path, wrong)
            continue
        rest = json.loads((path / "state.json").read_text())
        for name in rest.keys() - {"step", "score"}:
            file = path / f"{name}.safetensors"
            rest[name] = _whole(rest[name], load_file(file, device=device) if file.exists() else {})
        return rest
    raise UserError(f"{folder} holds no whole checkpoint")


def _part(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON, its tensors moved into `tensors` under their paths (one that stands twice, once)."""
    if isinstance(tree, Tensor):
        same = [key for key, other in tensors.items() if other is tree or _shared(other, tree)]
        if not same:
            tensors[path] = tree.detach().contiguous()
        return {"tensor": same[0] if same else path}
    if isinstance(tree, dict):
        below = [
            [key, _part(value, f"{path}.{key}".lstrip("."), tensors)] for key, value in tree.items()
        ]
        return {"dict": below}
    if isinstance(tree, list | tuple):
        return {
            type(tree).__name__: [
                _part(value, f"{path}.{i}".lstrip("."), tensors) for i, value in enumerate(tree)
            ]
        }
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(
        f"a checkpoint holds tensors, numbers and words, not {type(tree).__name__} at {path}"
    )


def _whole(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_part`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _whole(below, tensors) for key, below in value}
    return {"list": list, "tuple": tuple}[kind](_whole(below, tensors) for below in value)


def _shared(a: Tensor, b: Tensor) -> bool:
    return (
        a.numel() > 0 and a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype
    )


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None when it is whole."""
    try:
        digests = json.loads((path / "manifest.json").read_text())
        for name, file in digests.items():
            if (path / name).stat().st_size != file["size"] or _digest(path / name) != file[
                "sha256"
            ]:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if "state.json" in digests else "manifest.json does not name state.json"


def _steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def _score(folder: Path, step: int) -> float | None:
    try:
        return json.loads((folder / f"step-{step}" / "state.json").read_text())["score"]
    except (OSError, ValueError, KeyError):
        return None


def _prune(folder: Path) -> None:
    steps = _steps(folder)
    scores = {step: score for step in steps if (score := _score(folder, step)) is not None}
    best = min(scores, key=lambda step: (scores[step], step), default=None)
    for step in steps[:-2]:
        if step != best:
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
    """Every random generator a part might draw from, as a tree that `save` takes."""
    import random

    import numpy

    words = numpy.random.get_state(legacy=False)
    numpy_state = {
        "key": torch.from_numpy(words["state"]["key"].astype("int64")),
        "pos": words["state"]["pos"],
    }
    numpy_state |= {"has_gauss": words["has_gauss"], "gauss": words["gauss"]}
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy_state}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts back what `rng_state` read."""
    import random

    import numpy

    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kept = state["numpy"]
    words = {"key": kept["key"].numpy().astype("uint32"), "pos": kept["pos"]}
    numpy.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": words,
            "has_gauss": kept["has_gauss"],
            "gauss": kept["gauss"],
        }
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
