"""Embedded speech, no download: phrases of a small grammar in 75 cells of voice, speed and pitch (SVOX Pico)."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int16, Int32

from famx.data import _tts as speak
from famx.data._grammar import sentences
from famx.data.base import Speech, choose_split
from famx.notation import SAMPLE_RATE, UserError
from famx.registry import register

VOICES = ("en-US", "de-DE", "es-ES", "fr-FR", "it-IT")
UNHEARD = "en-GB"
# the American voice speaks 16 of twenty phrases, each of the others, which read English by rules of their own, one;
# they are the harder to follow, so training hears each of them twice as often
TURNS = (0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4, 0, 0)
TRAIN_TURNS = (0, 0, 1, 0, 2, 0, 3, 0, 4, 0)
# percents of a voice's usual speed and pitch; any held pitch is at least 15 % (of the larger) from any heard one
HEARD_SPEEDS, HEARD_PITCHES = (78, 86, 95, 105, 116), (71, 100, 140)
HELD_SPEEDS, HELD_PITCHES = (82, 100), (84, 118)
CELLS = {
    "train": list(product(HEARD_SPEEDS, HEARD_PITCHES)),
    "dev": [(82, 118), (100, 84)],
    "test": [(82, 84), (100, 118)],
    "unheard": list(product(HELD_SPEEDS, HELD_PITCHES)),
}
# seconds a character: the French voice swallows more than can be followed, a few phrases in a thousand
SHORTEST = 0.045
GRAMMAR_SEED = 0


class Utterance(NamedTuple):
    """A sentence and who says it, speed and pitch in percent of the voice's usual ones."""

    split: str
    text: str
    voice: str
    speed: int
    pitch: int


def recipe(sizes: dict[str, int]) -> list[Utterance]:
    """Who says what: no sentence is in two splits, no speaker of one split is in another."""
    stream = sentences(GRAMMAR_SEED)
    said = []
    for split, size in sizes.items():
        spoken: Counter[str] = Counter()
        turns = TRAIN_TURNS if split == "train" else TURNS
        for index, text in enumerate(islice(stream, size)):
            voice = UNHEARD if split == "unheard" else VOICES[turns[index % len(turns)]]
            said.append(
                Utterance(split, text, voice, *CELLS[split][spoken[voice] % len(CELLS[split])])
            )
            spoken[voice] += 1
    return said


def cache_folder() -> Path:
    """$FAMX_CACHE, else ~/.cache/famx."""
    return Path(os.environ.get("FAMX_CACHE") or Path.home() / ".cache" / "famx").expanduser()


def render(said: list[Utterance]) -> Path:
    """Folder with the samples and the table of all utterances, spoken now if they never were.

    Two processes speak every other utterance each, always two, since what is said depends on what was said before.
    The folder's name is the digest of everything that decides the samples; it gets that name when it is whole.
    """
    source = Path(speak.__file__).read_text()
    digest = hashlib.sha256(json.dumps([said, source, version("py-nanotts")]).encode()).hexdigest()[
        :16
    ]
    folder = cache_folder() / f"spoken-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="rendering-", dir=folder.parent) as aside:
            whole = Path(aside) / "whole"
            whole.mkdir()
            _speak(said, whole)
            try:
                whole.rename(folder)
            except OSError:
                # another process was faster; its rendering is the same
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise UserError(
            f"the embedded speech cannot be written to {folder.parent} (FAMX_CACHE): {error}"
        ) from error
    return folder


def _speak(said: list[Utterance], folder: Path) -> None:
    shards = [said[0::2], said[1::2]]
    with tempfile.TemporaryDirectory() as lists:
        processes = []
        try:
            for number, shard in enumerate(shards):
                list_file = Path(lists) / f"{number}.json"
                list_file.write_text(json.dumps([utterance[1:] for utterance in shard]))
                command = [
                    sys.executable,
                    "-P",
                    speak.__file__,
                    str(list_file),
                    str(folder / str(number)),
                ]
                processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            _watch(processes, folder, len(said))
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _watch(processes: list[subprocess.Popen], folder: Path, total: int) -> None:
    """Waits for the speakers with a progress bar, or a line for every quarter where there is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    told = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"speaking {total:,} phrases, once", total=total)
        running = True
        while running:
            running = any(process.poll() is None for process in processes)
            failed = next((process for process in processes if process.poll()), None)
            if failed:
                raise UserError(
                    f"py-nanotts failed: {failed.communicate()[1].strip().splitlines()[-1]}"
                )
            done = sum(len(_lengths(folder, shard)) for shard in (0, 1))
            progress.update(task, completed=done)
            if not console.is_terminal and 4 * done // total > told:
                told = 4 * done // total
                console.print(f"speaking the embedded phrases, once: {done:,} of {total:,}")
            time.sleep(0.1 if running else 0)


def _lengths(folder: Path, shard: int) -> Int32[np.ndarray, " u"]:
    file = folder / f"{shard}.lengths"
    return np.fromfile(file, np.int32) if file.exists() else np.zeros(0, np.int32)


@register
class Spoken(Speech):
    """Phrases spoken by SVOX Pico: speaker = voice x speed x pitch, a test speaker's at least 15 % away from every
    training speaker's; `unheard` is an English voice that training never hears.

    Rendered once, to the folder `$FAMX_CACHE` or `~/.cache/famx`.
    """

    splits = ("train", "dev", "test", "unheard")
    sizes: ClassVar[dict[str, int]] = {"train": 6400, "dev": 200, "test": 400, "unheard": 200}

    def __init__(self, split: str) -> None:
        choose_split(split, self.splits)
        said = recipe(self.sizes)
        self._folder = render(said)
        lengths = np.zeros(len(said), np.int64)
        starts = np.zeros(len(said), np.int64)
        for shard in (0, 1):
            found = _lengths(self._folder, shard)
            lengths[shard::2] = found
            starts[shard::2] = np.cumsum(found) - found
        mine = [
            index
            for index, utterance in enumerate(said)
            if utterance.split == split
            and lengths[index] >= len(utterance.text) * SHORTEST * SAMPLE_RATE
        ]
        self._places = [
            (index % 2, starts[index], starts[index] + lengths[index]) for index in mine
        ]
        super().__init__(
            {
                "id": [f"{split}-{number:04d}" for number in range(len(mine))],
                "text": [said[index].text for index in mine],
                "speaker": ["-".join(map(str, said[index][2:])) for index in mine],
                "seconds": (lengths[mine] / SAMPLE_RATE).tolist(),
            }
        )
        self._shards = [
            np.memmap(self._folder / f"{shard}.int16", np.int16, mode="r") for shard in (0, 1)
        ]

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        shard, start, stop = self._places[index]
        return np.array(self._shards[shard][start:stop])
