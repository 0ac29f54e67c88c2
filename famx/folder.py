"""A run's folder: taken by one run alone, read by whoever goes on with it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tokenizers import Tokenizer
from torch import nn

from famx.notation import UserError


def runs_in(given: Sequence[str]) -> list[Path]:
    """The folders of runs, each once, as they come; a sweep's folder stands for all runs in it, by their names."""
    folders: dict[Path, Path] = {}
    for folder in map(Path, given):
        inside = sorted(file.parent for file in folder.glob("*/config.yaml"))
        for run in [folder] if (folder / "config.yaml").exists() or not inside else inside:
            folders.setdefault(run.resolve(), run)
    return list(folders.values())


def refuse_taken(folder: Path) -> None:
    """Refuses a folder for a new run.

    Raises:
        UserError: it holds a run.
    """
    if (folder / "checkpoints").exists() or (folder / "config.yaml").exists():
        saved = any((folder / "checkpoints").glob("*"))
        way = f"go on with resume={folder}" if saved else "it has saved nothing to go on from, so remove it"
        raise UserError(f"{folder} already holds a run: {way}, or choose another folder")


@contextlib.contextmanager
def taken(folder: Path, resume: bool) -> Iterator[None]:
    """Keeps the folder for this run alone, as long as it lasts.

    Raises:
        UserError: another process trains in it, or for a new run: it holds one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"{folder} is in use: another process trains in it") from error
    with held:
        if not resume:
            refuse_taken(folder)
            (folder / "checkpoints").mkdir()
        yield


def stored_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    file = run / "tokenizer.json"
    try:
        return Tokenizer.from_str(file.read_text())
    except Exception as error:  # tokenizers raises no other
        raise UserError(f"{file} is missing or damaged: {error}") from error


def checkpoints(run: str | Path) -> Path:
    """The checkpoint folder of a run.

    Raises:
        UserError: the run has none.
    """
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run} is not a run with checkpoints: there is no {folder}")
    return folder


def load_weights(model: nn.Module, saved: Mapping[str, Any], source: Any) -> None:
    """Puts the averaged weights of a checkpoint, or its plain ones, into the model.

    Raises:
        UserError: they are another model's.
    """
    averaged = saved.get("averaged", {})
    theirs = {key.removeprefix("module."): value for key, value in averaged.items() if key != "n_averaged"}
    ours, theirs = model.state_dict(), theirs or saved["model"]
    wrong = sorted(ours.keys() ^ theirs.keys()) or [k for k in ours if ours[k].shape != theirs[k].shape]
    if wrong:
        shapes = [tuple(tree[wrong[0]].shape) if wrong[0] in tree else "absent" for tree in (theirs, ours)]
        raise UserError(f"{source} holds another model: {wrong[0]} is {shapes[0]} there and {shapes[1]} here")
    model.load_state_dict(theirs)
