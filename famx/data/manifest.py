"""Own recordings: train.tsv, dev.tsv and test.tsv in one folder, lines of path, text and speaker with tabs between."""

import copy
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from famx.data.base import Recordings, Speech, choose_split
from famx.notation import SAMPLE_RATE, Seconds, UserError
from famx.registry import register
from famx.seeding import numpy_rng

# from one joined recording to the next, drawn evenly; below zero they overlap
GAP: tuple[Seconds, Seconds] = (-0.03, 0.2)


@register
class Manifest(Speech):
    """Recordings that a manifest lists, optionally joined, some of one speaker to an utterance.

    Args:
        root: folder of the manifests; their paths are relative to it and stay inside.
        train, dev, test: names of the manifests. Where there is no dev.tsv (or `dev=null`), every tenth line of
            `train` is dev and the others are train.
        join: fewest and most recordings that become one utterance. An epoch deals every recording once, anew in
            training; in the other splits it is epoch 0 always, so that the whole split is scored.
        skip_bad: leave bad recordings out and count them, where otherwise the first one is refused.
        max_seconds: longest recording that is taken.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "",
        train: str = "train.tsv",
        dev: str | None = "dev.tsv",
        test: str = "test.tsv",
        join: tuple[int, ...] = (),
        skip_bad: bool = False,
        max_seconds: Seconds = 40.0,
    ) -> None:
        from datasets import Dataset

        choose_split(split, self.splits)
        if not root:
            raise UserError("data=manifest needs the folder of the manifests, data.root=DIR")
        if join and (len(join) != 2 or not 1 <= join[0] <= join[1]):
            raise UserError(
                f"data.join={list(join)} is not [fewest, most] with 1 <= fewest <= most"
            )
        folder = Path(root).expanduser()
        if dev == "dev.tsv" and not (folder / dev).exists():
            dev = None
        rows = _rows(folder, {"train": train, "dev": dev or train, "test": test}[split])
        if not dev and split != "test":
            rows = [row for index, row in enumerate(rows) if (index % 10 == 9) == (split == "dev")]
            if not rows:
                raise UserError(
                    f"{folder / train} has too few lines to spare a tenth of them for dev; name a data.dev"
                )
        if join and not all(row["speaker"] for row in rows):
            raise UserError(
                f"data.join={list(join)} needs a speaker, the third column, in every line of {folder}'s manifests"
            )
        self.skip_bad, self._join, self._seed, self._anew = (
            skip_bad,
            tuple(join),
            seed,
            bool(join) and split == "train",
        )
        audio = Dataset.from_dict({"audio": [{"path": row["file"], "bytes": None} for row in rows]})
        columns = ([row[name] for row in rows] for name in ("path", "text", "speaker"))
        self._recordings = Recordings(audio, *columns, skip_bad=skip_bad, max_seconds=max_seconds)
        self._deal(0)

    def at(self, epoch: int) -> "Manifest":
        if not self._anew:
            return self
        view = copy.copy(self)
        view._deal(epoch)
        return view

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        parts = [self._recordings.samples(part) for part in self._groups[index]]
        if len(parts) == 1:
            return parts[0]
        starts = [0]
        for part, gap in zip(parts, self._gaps[index], strict=False):
            starts.append(max(starts[-1], starts[-1] + len(part) + int(gap)))
        ends = [start + len(part) for start, part in zip(starts, parts, strict=True)]
        joined = np.zeros(max(ends), np.int32)
        for start, end, part in zip(starts, ends, parts, strict=True):
            joined[start:end] += part
        return joined.clip(-(2**15), 2**15 - 1).astype(np.int16)

    def _deal(self, epoch: int) -> None:
        """Makes this the data set of an epoch: which recordings are joined, and how far apart they are (in samples)."""
        single = self._recordings
        rng = numpy_rng(self._seed, "join", epoch)
        self._groups = (
            _groups(single.speakers, *self._join, rng)
            if self._join
            else [[i] for i in range(len(single))]
        )
        self._gaps = [rng.uniform(*GAP, len(group) - 1) * SAMPLE_RATE for group in self._groups]
        first = [group[0] for group in self._groups]
        joined = [f"+{len(group) - 1}" if len(group) > 1 else "" for group in self._groups]
        super().__init__(
            {
                "id": [single.ids[index] + more for index, more in zip(first, joined, strict=True)],
                "text": [
                    " ".join(single.texts[index] for index in group) for group in self._groups
                ],
                "speaker": [single.speakers[index] for index in first],
                "seconds": [
                    sum(single.lengths[index] for index in group) + gaps.sum() / SAMPLE_RATE
                    for group, gaps in zip(self._groups, self._gaps, strict=True)
                ],
            }
        )


def _groups(
    speakers: list[str], fewest: int, most: int, rng: np.random.Generator
) -> list[list[int]]:
    """Every recording in one group, shuffled; a group is smaller than `fewest` only where nothing else is left."""
    groups = []
    for speaker in sorted(set(speakers)):
        left = rng.permutation(
            [index for index, name in enumerate(speakers) if name == speaker]
        ).tolist()
        while left:
            largest = max(fewest, min(most, len(left) - fewest))
            size = len(left) if len(left) <= most else int(rng.integers(fewest, largest + 1))
            groups.append(left[:size])
            left = left[size:]
    return groups


def _rows(folder: Path, name: str) -> list[dict[str, str]]:
    """The lines of a manifest, whose recordings are there and inside the folder."""
    manifest, inside = folder / name, folder.resolve()
    if not manifest.is_file():
        raise UserError(f"there is no manifest {manifest}")
    try:
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest} is not UTF-8: {error.reason} at byte {error.start}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) not in (2, 3):
            raise UserError(
                f"{manifest}, line {number}: {len(columns) - 1} tabs where PATH<TAB>TEXT[<TAB>SPEAKER] is meant"
            )
        path, text, speaker = [*columns, ""][:3]
        try:
            file = (folder / path).resolve()
            there = file.is_file()
        except (OSError, ValueError) as error:  # too long, or with a NUL
            raise UserError(f"{manifest}, line {number}: {path!r} is no path ({error})") from error
        if not file.is_relative_to(inside):
            raise UserError(f"{manifest}, line {number}: {path} leaves the folder {folder}")
        if not there:
            raise UserError(f"{manifest}, line {number}: there is no file {folder / path}")
        rows.append({"path": path, "file": str(file), "text": text, "speaker": speaker})
    if not rows:
        raise UserError(f"the manifest {manifest} is empty")
    return rows
