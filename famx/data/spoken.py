"""Embedded speech (no download): phrases of a grammar by 75 synthetic speakers (SVOX Pico)."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int16

from famx.data._grammar import sentences
from famx.data._paths import typed_path
from famx.data._rendering import Rendering, Utterance, cached_rendering, render
from famx.data.base import Speech, check_split
from famx.notation import SAMPLE_RATE
from famx.registry import register

GRAMMAR_SEED = 0
VOICES = ("en-US", "de-DE", "es-ES", "fr-FR", "it-IT")
# voice of the split `unheard`, of which training has no speaker
UNHEARD_VOICE = "en-GB"
# Indices of voices, in the order in which phrases are assigned to them. The American voice speaks
# 16 of 20 phrases, and each of the other voices, which pronounce English by foreign rules, speaks
# one. These are harder to recognise, so training has twice as many of them.
VOICE_ORDER = (0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4, 0, 0)
TRAIN_VOICE_ORDER = (0, 0, 1, 0, 2, 0, 3, 0, 4, 0)
# Speeds and pitches of each voice, in percent of its default. A pitch of the other splits differs
# from every pitch of training by at least 15 % (of the larger).
TRAIN_SPEEDS = (78, 86, 95, 105, 116)
TRAIN_PITCHES = (71, 100, 140)
# split -> (speed, pitch) of its speakers
SPEAKERS = {
    "train": list(product(TRAIN_SPEEDS, TRAIN_PITCHES)),
    "dev": [(82, 118), (100, 84)],
    "test": [(82, 84), (100, 118)],
    "unheard": list(product((82, 100), (84, 118))),
}
# Seconds per character below which a rendering is dropped: in a few of a thousand phrases, the
# French voice omits too much to be understood.
MIN_SECONDS_PER_CHARACTER = 0.045


@register
class Spoken(Speech):
    """Phrases spoken by SVOX Pico; a speaker is a voice, a speed and a pitch.

    Every speaker of dev and test differs by at least 15 % in pitch from all speakers of training;
    `unheard` has an English voice that training never has.

    Args:
        split: "train", "dev", "test" or "unheard".
        rendering: folder of a rendering; empty for that in `$FAMX_CACHE` or `~/.cache/famx`, which
            is created if it is missing (takes minutes, once).
    """

    splits = ("train", "dev", "test", "unheard")
    path_options = ("rendering",)
    # phrases of each split
    sizes: ClassVar[dict[str, int]] = {"train": 6400, "dev": 200, "test": 400, "unheard": 200}

    def __init__(self, split: str, *, rendering: str = "") -> None:
        check_split(split, self.splits)
        if not rendering:
            rendering = str(cached_rendering(recipe(self.sizes)))
        self._rendering = Rendering(typed_path(rendering))
        utterances = self._rendering.utterances
        lengths = self._rendering.lengths

        # phrases of the split, in the order of the rendering, without those that are too short
        self._indices: list[int] = []
        ids: list[str] = []
        texts: list[str] = []
        speakers: list[str] = []
        for index, (phrase_split, text, voice, speed, pitch) in enumerate(utterances):
            shortest = len(text) * MIN_SECONDS_PER_CHARACTER * SAMPLE_RATE
            if phrase_split == split and lengths[index] >= shortest:
                ids.append(f"{split}-{len(ids):04d}")
                texts.append(text)
                speakers.append(f"{voice}-{speed}-{pitch}")
                self._indices.append(index)
        seconds = lengths[self._indices] / SAMPLE_RATE
        super().__init__(ids, texts, speakers, seconds.tolist())

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        # far fewer phrases than by default, since 7,200 take minutes
        sizes = {"train": 14, "dev": 3, "test": 3, "unheard": 3}
        render(recipe(sizes), folder / "rendering", show_progress=False)
        return {"rendering": str(folder / "rendering")}

    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        return self._rendering.samples(self._indices[index])


def recipe(sizes: Mapping[str, int]) -> list[Utterance]:
    """Assigns a speaker to each phrase of splits of the given sizes.

    No phrase and no speaker is in two splits.
    """
    phrases = sentences(GRAMMAR_SEED)
    utterances = []
    for split, size in sizes.items():
        order = TRAIN_VOICE_ORDER if split == "train" else VOICE_ORDER
        speakers = SPEAKERS[split]
        # the speakers of a voice take turns
        phrases_of_voice: Counter[str] = Counter()
        for index, text in enumerate(islice(phrases, size)):
            voice = UNHEARD_VOICE if split == "unheard" else VOICES[order[index % len(order)]]
            speed, pitch = speakers[phrases_of_voice[voice] % len(speakers)]
            utterances.append(Utterance(split, text, voice, speed, pitch))
            phrases_of_voice[voice] += 1
    return utterances
