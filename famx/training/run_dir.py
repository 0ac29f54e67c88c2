"""A run's folder: taken by one run alone, read by whoever goes on with it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from famx.config.schema import CONF
from famx.notation import UserError
from famx.registry import ROOMS


def load_config(run: str | Path) -> dict[str, Any]:
    """The config of a run; what did not exist when it was written is as it is now.

    Raises:
        UserError: it is missing or damaged.
    """
    file = Path(run) / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{run} is not a run: {file} cannot be read ({str(error).splitlines()[0]})"
        ) from error
    newest = yaml.safe_load((CONF / "train.yaml").read_text())
    sections = (*ROOMS, "model", "trainer", "loader")
    config = config if isinstance(config, dict) else {}
    if missing := [key for key in sections if not isinstance(config.get(key), dict)]:
        raise UserError(f"{run} is not a run: {file} has no section {', '.join(missing)}")
    return {
        key: value for key, value in newest.items() if key not in ("defaults", "hydra")
    } | config


def find_runs(given: Sequence[str]) -> list[Path]:
    """The folders of runs, each once, as they come; a sweep's folder stands for all runs in it, by their names."""
    folders: dict[Path, Path] = {}
    for folder in map(Path, given):
        inside = sorted(file.parent for file in folder.glob("*/config.yaml"))
        for run in [folder] if (folder / "config.yaml").exists() or not inside else inside:
            folders.setdefault(run.resolve(), run)
    return list(folders.values())


def require_empty(folder: Path) -> None:
    """Refuses a folder for a new run.

    Raises:
        UserError: it holds a run.
    """
    if (folder / "checkpoints").exists() or (folder / "config.yaml").exists():
        saved = any((folder / "checkpoints").glob("*"))
        way = (
            f"go on with resume={folder}"
            if saved
            else "it has saved nothing to go on from, so remove it"
        )
        raise UserError(f"{folder} already holds a run: {way}, or choose another folder")


@contextlib.contextmanager
def lock(folder: Path, resume: bool) -> Iterator[None]:
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
            require_empty(folder)
            (folder / "checkpoints").mkdir()
        yield


def load_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    file = run / "tokenizer.json"
    try:
        return Tokenizer.from_str(file.read_text())
    except Exception as error:  # tokenizers raises no other
        raise UserError(f"{file} is missing or damaged: {error}") from error


def checkpoint_dir(run: str | Path) -> Path:
    """The checkpoint folder of a run.

    Raises:
        UserError: the run has none.
    """
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run} is not a run with checkpoints: there is no {folder}")
    return folder
