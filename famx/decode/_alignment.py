"""Times of tokens, characters and words: the most probable CTC alignment of a text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from famx.nn.encoding import BLANK_ID
from famx.nn.torchaudio import import_torchaudio
from famx.notation import Seconds


class TimedText(NamedTuple):
    """A word or a character, and where it is in a recording, in seconds."""

    text: str
    start: Seconds
    end: Seconds


class TokenSpan(NamedTuple):
    """A token, and the frames that emit it, from `start` to before `end`."""

    token: int
    start: int
    end: int


def align(scores: Float[Tensor, "t v"], tokens: Sequence[int]) -> list[TokenSpan]:
    """Returns the frames of each token in the most probable alignment.

    The network emits a token in few frames, often in one, so that the end of a token is rather when
    it is recognised than when its sound ends.
    """
    if not tokens:
        return []
    # imported late, since few commands align
    functional = import_torchaudio("functional")
    log_probs = scores.float().log_softmax(-1)[None].cpu()
    targets = torch.tensor([tokens])
    path, path_scores = functional.forced_align(log_probs, targets, blank=BLANK_ID)
    spans = functional.merge_tokens(path[0], path_scores[0], blank=BLANK_ID)
    return [TokenSpan(int(span.token), span.start, span.end) for span in spans]


def character_times(
    spans: Sequence[TokenSpan], texts: Sequence[str], frames: int, step: Seconds
) -> list[TimedText]:
    """Returns the times of all characters, spaces too.

    The characters of a token share its frames equally.

    Args:
        texts: text of each token.
        frames: number of frames for one stretch of time.
        step: that stretch, in seconds.
    """
    times = []
    for span in spans:
        text = texts[span.token]
        start = span.start // frames * step
        end = math.ceil(span.end / frames) * step
        length = (end - start) / max(1, len(text))
        for i, character in enumerate(text):
            times.append(TimedText(character, start + i * length, start + (i + 1) * length))
    return times


def word_times(characters: Sequence[TimedText]) -> list[TimedText]:
    """Returns the times of words, from their first character to their last one."""
    words: list[TimedText] = []
    is_new = True
    for character in characters:
        if character.text == " ":
            is_new = True
        elif is_new:
            words.append(character)
            is_new = False
        else:
            word = words[-1]
            words[-1] = TimedText(word.text + character.text, word.start, character.end)
    return words
