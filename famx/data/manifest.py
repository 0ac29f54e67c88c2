"""The user's recordings: a folder with train.tsv, dev.tsv and test.tsv, or in other forms."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from famx.data._audio_table import AudioFiles, Extent
from famx.data._example import write_corpus
from famx.data._fingerprint import digest
from famx.data._manifest_rows import rows_of_split
from famx.data._normalisers import Normaliser
from famx.data._paths import existing_path, typed_path
from famx.data._recordings import Recordings
from famx.data.base import Speech, Unknown, check_max_seconds, check_split
from famx.notation import SAMPLE_RATE, Seconds, UserError
from famx.registry import register
from famx.seeding import numpy_rng

# pause between two joined recordings, sampled uniformly; below zero they overlap
MIN_GAP: Seconds = -0.03
MAX_GAP: Seconds = 0.2
MAX_JOINED = 100  # recordings of one utterance


@register
class Manifest(Speech):
    """Recordings listed in manifests, optionally several of one speaker joined to an utterance.

    A line of a .tsv manifest is PATH<TAB>TEXT[<TAB>SPEAKER[<TAB>SECONDS]]. One that ends in .jsonl
    or .json has an object in each line, with the keys of NeMo: audio_filepath, text, and optionally
    duration, offset and speaker. A folder in the form of Kaldi has wav.scp and text, and optionally
    utt2spk and segments. One that ends in .jsonl.gz has cuts of lhotse (the extra `lhotse`), each
    supervision of which is a recording. A duration that is stated spares reading the header.

    Args:
        split: "train", "dev" or "test".
        seed: seed of the groups of training recordings that are joined. The groups of dev and test
            are the same for every seed, so that runs with different seeds have one test.
        root: folder of the manifests, to which the paths of recordings are relative.
        train, dev, test: names of the manifests. Without dev.tsv (or with `dev=null`), a
            tenth of `train`, spread over its texts, belongs to dev, and the others to train.
        join: smallest and largest number of recordings that are joined to one utterance. Every
            recording occurs once per epoch. Training recordings are grouped anew in every epoch,
            those of the other splits only once.
        skip_bad: skips bad recordings and counts them; otherwise the first one is refused.
        max_seconds: longest recording that is accepted, in seconds.
        normaliser: normalisation of the texts: lower case without punctuation ("basic"), Whisper's
            rules for English ("english", of the extra `english`), as written in NFC without
            invisible characters ("unicode"), or as written ("none").
        unknown: what becomes of texts of dev and test with characters that train lacks.
        allow_outside: whether recordings may be outside of the folder; links that lead there are
            followed if the owner of the folder, or the user, has made them.
    """

    path_options = ("root",)

    def __init__(  # noqa: PLR0913
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
        normaliser: Normaliser = "basic",
        unknown: Unknown = "replace",
        allow_outside: bool = True,
    ) -> None:
        # the options
        check_split(split, self.splits)
        if not root:
            raise UserError("it needs the folder of the manifests, data.root=DIR")
        check_max_seconds(max_seconds)
        if join and (len(join) != 2 or not 1 <= join[0] <= join[1] <= MAX_JOINED):
            raise UserError(
                f"data.join={list(join)} is not [fewest, most] with "
                f"1 <= fewest <= most <= {MAX_JOINED}"
            )

        # lines of the split
        folder = existing_path(typed_path(root))
        rows = rows_of_split(folder, split, train, dev, test, allow_outside)
        if join and not all(row.speaker for row in rows):
            raise UserError(
                f"data.join={list(join)} needs a speaker in every line of {folder}'s manifests"
            )

        # their recordings, then the utterances of epoch 0
        files = AudioFiles(
            [row.file for row in rows], [Extent(row.seconds, row.start) for row in rows]
        )
        self._recordings = Recordings(
            files,
            ids=[row.name for row in rows],
            texts=[row.text for row in rows],
            speakers=[row.speaker for row in rows],
            skip_bad=skip_bad,
            max_seconds=max_seconds,
            normaliser=normaliser,
            keep_empty=split != "train",
        )
        self.skip_bad = skip_bad
        self.normaliser = normaliser
        self.unknown = unknown
        self._join = tuple(join)
        self._seed = seed if split == "train" else 0
        self._changes_by_epoch = bool(join) and split == "train"
        self._join_recordings(0)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        write_corpus(folder)
        return {"root": str(folder), "join": (2, 3)}

    def at(self, epoch: int) -> "Manifest":
        if not self._changes_by_epoch:
            return self
        view = copy.copy(self)
        view._join_recordings(epoch)
        return view

    def files(self) -> Sequence[str]:
        return self._recordings.files()

    def fingerprint(self) -> dict[str, str]:
        starts = self._recordings.starts()
        aspects = super().fingerprint()
        return aspects | {"starts": digest(sorted(starts))} if starts else aspects

    def use_cache(self, n_bytes: int) -> None:
        self._recordings.use_cache(n_bytes)

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        parts = [self._recordings.samples(member) for member in self._groups[index]]
        if len(parts) == 1:
            return parts[0]
        # a part begins `gap` samples after the end of the previous one, but not before its start
        starts = [0]
        for part, gap in zip(parts[:-1], self._gaps[index], strict=True):
            starts.append(max(starts[-1], starts[-1] + len(part) + int(gap)))
        ends = [start + len(part) for start, part in zip(starts, parts, strict=True)]
        # the sum of overlapping parts may exceed 16 bits
        joined = np.zeros(max(ends), np.int32)
        for start, end, part in zip(starts, ends, parts, strict=True):
            joined[start:end] += part
        return joined.clip(-(2**15), 2**15 - 1).astype(np.int16)

    def _join_recordings(self, epoch: int) -> None:
        """Sets the utterances of an epoch: their recordings and the gaps (in samples) between."""
        # groups of recordings
        single = self._recordings
        rng = numpy_rng(self._seed, "join", epoch)
        if self._join:
            min_size, max_size = self._join
            self._groups = _group_by_speaker(single.speakers, min_size, max_size, rng)
        else:
            self._groups = [[index] for index in range(len(single))]

        # gaps, names, texts and durations of the utterances
        self._gaps: list[np.ndarray] = []
        ids: list[str] = []
        texts: list[str] = []
        speakers: list[str] = []
        lengths: list[Seconds] = []
        for group in self._groups:
            gaps = rng.uniform(MIN_GAP, MAX_GAP, len(group) - 1) * SAMPLE_RATE
            self._gaps.append(gaps)
            # the name is that of the first recording with the number of the others
            suffix = f"+{len(group) - 1}" if len(group) > 1 else ""
            ids.append(single.ids[group[0]] + suffix)
            texts.append(" ".join(filter(None, (single.texts[index] for index in group))))
            speakers.append(single.speakers[group[0]])
            recorded = sum(single.lengths[index] for index in group)
            lengths.append(recorded + gaps.sum() / SAMPLE_RATE)
        super().__init__(ids, texts, speakers, lengths)


def _group_by_speaker(
    speakers: Sequence[str], min_size: int, max_size: int, rng: np.random.Generator
) -> list[list[int]]:
    """Groups all recordings, shuffled, each group of one speaker.

    A group has from `min_size` to `max_size` recordings, or fewer if a speaker has too few.
    """
    groups = []
    for speaker in sorted(set(speakers)):
        members = [index for index, name in enumerate(speakers) if name == speaker]
        ungrouped: list[int] = rng.permutation(members).tolist()
        while ungrouped:
            if len(ungrouped) <= max_size:
                size = len(ungrouped)
            else:
                # at least `min_size` recordings remain for the next group
                largest = max(min_size, min(max_size, len(ungrouped) - min_size))
                size = int(rng.integers(min_size, largest + 1))
            groups.append(ungrouped[:size])
            ungrouped = ungrouped[size:]
    return groups
