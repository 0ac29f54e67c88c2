"""Synthetic speech on disk: rendered by SVOX Pico in subprocesses, read by memory mapping."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, Int32

from famx.data import _tts
from famx.data._paths import typed_path
from famx.notation import UserError

# must increase with every change of _tts.py that changes samples
RENDERING_VERSION = 1
# Number of processes that speak: utterance i is number i // 2 of shard i % 2. Samples depend on
# what the same process spoke before, so this number is the same on all machines.
N_SHARDS = 2
UTTERANCES = "utterances.json"
POLL_SECONDS = 0.1


class Utterance(NamedTuple):
    """A sentence and its speaker, whose speed and pitch are percentages of the voice's defaults."""

    split: str
    text: str
    voice: str
    speed: int
    pitch: int


class Rendering:
    """Utterances and their samples, as `render` wrote them into a folder.

    Args:
        folder: folder of the rendering.

    Attributes:
        utterances: all utterances, of all splits.
        lengths: their numbers of samples.

    Raises:
        UserError: the folder holds no complete rendering.
    """

    def __init__(self, folder: Path) -> None:
        # the samples stay on disk, mapped into memory
        try:
            rows = json.loads((folder / UTTERANCES).read_text(encoding="utf-8"))
            lengths = [_read_lengths(folder, shard) for shard in range(N_SHARDS)]
            self._shards = [
                np.memmap(folder / f"{shard}.int16", np.int16, mode="r")
                for shard in range(N_SHARDS)
            ]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} holds no rendered speech: {error}") from error
        # position of each utterance inside its shard
        self.utterances = [Utterance(*row) for row in rows]
        self.lengths = np.zeros(len(rows), np.int64)
        self._starts = np.zeros(len(rows), np.int64)
        for shard in range(N_SHARDS):
            if len(lengths[shard]) != len(rows[shard::N_SHARDS]):
                raise UserError(f"{folder} holds no complete rendering; remove it")
            self.lengths[shard::N_SHARDS] = lengths[shard]
            self._starts[shard::N_SHARDS] = np.cumsum(lengths[shard]) - lengths[shard]

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        """Returns the samples of an utterance, 16 kHz mono."""
        start = self._starts[index]
        return np.array(self._shards[index % N_SHARDS][start : start + self.lengths[index]])


def cache_folder() -> Path:
    """Returns $FAMX_CACHE, or else ~/.cache/famx.

    Raises:
        UserError: the user has no home, and $FAMX_CACHE is not set.
    """
    folder = typed_path(os.environ.get("FAMX_CACHE") or "~/.cache/famx")
    if folder.parts[0] == "~":
        raise UserError("the user has no home for the cache of famx: set FAMX_CACHE=FOLDER")
    return folder


def cached_rendering(utterances: Sequence[Utterance]) -> Path:
    """Returns the folder of a rendering in the cache; renders it first if it is missing.

    The name of the folder is a digest of everything that affects the samples. A rendering gets this
    name when it is complete, so that an interrupted one is never read.
    """
    content = json.dumps([utterances, RENDERING_VERSION, version("py-nanotts")])
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    folder = cache_folder() / f"spoken-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="rendering-", dir=folder.parent) as temp_folder:
            rendering = Path(temp_folder) / "rendering"
            render(utterances, rendering)
            try:
                rendering.rename(folder)
            except OSError:
                # another process was faster; its rendering is the same
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise UserError(
            f"the embedded speech cannot be written to {folder.parent} (FAMX_CACHE): {error}"
        ) from error
    return folder


def render(utterances: Sequence[Utterance], folder: Path, show_progress: bool = True) -> None:
    """Speaks all utterances and writes them into a new folder, for `Rendering` to read.

    Raises:
        UserError: the synthesizer fails.
    """
    folder.mkdir()
    (folder / UTTERANCES).write_text(json.dumps(utterances), encoding="utf-8")
    with tempfile.TemporaryDirectory() as lists:
        processes: list[subprocess.Popen] = []
        try:
            for shard in range(N_SHARDS):
                list_file = Path(lists) / f"{shard}.json"
                # without the split, which the synthesizer does not need
                rows = [utterance[1:] for utterance in utterances[shard::N_SHARDS]]
                list_file.write_text(json.dumps(rows), encoding="utf-8")
                script = [sys.executable, "-P", _tts.__file__]
                command = [*script, str(list_file), str(folder / str(shard)), str(os.getpid())]
                processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            _wait(processes, folder, len(utterances), show_progress)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _wait(
    processes: Sequence[subprocess.Popen], folder: Path, total: int, show_progress: bool
) -> None:
    """Waits for the processes, with a progress bar, or with a line for every quarter in a log."""
    # imported late: it takes a moment, and renderings are rare
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, quiet=not show_progress, markup=False)
    reported_quarters = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"speaking {total:,} phrases, once", total=total)
        running = True
        while running:
            running = any(process.poll() is None for process in processes)
            _refuse_failure(processes)
            done = sum(len(_read_lengths(folder, shard)) for shard in range(N_SHARDS))
            progress.update(task, completed=done)
            quarters = 4 * done // total
            if not console.is_terminal and quarters > reported_quarters:
                reported_quarters = quarters
                console.print(f"speaking the embedded phrases, once: {done:,} of {total:,}")
            if running:
                time.sleep(POLL_SECONDS)


def _refuse_failure(processes: Sequence[subprocess.Popen]) -> None:
    """Raises a UserError with the last line on stderr of a process that has failed."""
    for process in processes:
        if process.poll():
            assert process.stderr is not None  # it is a pipe
            lines = process.stderr.read().strip().splitlines()
            raise UserError(f"py-nanotts failed: {lines[-1] if lines else process.returncode}")


def _read_lengths(folder: Path, shard: int) -> Int32[np.ndarray, " u"]:
    """Reads the number of samples of each utterance that a shard has so far."""
    file = folder / f"{shard}.lengths"
    return np.fromfile(file, np.int32) if file.exists() else np.zeros(0, np.int32)
