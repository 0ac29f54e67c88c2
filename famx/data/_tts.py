"""Speaks a list of sentences with SVOX Pico in one fixed order, in a process of its own.

What Pico says depends on what the process said before, so a process that speaks one fixed list from its start is the
only way to the same samples again. It is run as a script, `python speak.py LIST OUT`, and imports nothing of famx. It
writes the samples one after the other to OUT.int16 and the number of them in every utterance to OUT.lengths.
"""

import json
import os
import sys

import numpy as np

SAMPLE_RATE = 16_000
# louder than this, Pico clips
VOLUME = 0.5
# a tenth of a second stays around the speech of a recording; the foreign voices end in half a second of nothing
MARGIN = SAMPLE_RATE // 10
SILENCE = 200


def main(sentences: str, out: str) -> None:
    """Speaks all of the JSON list of (text, voice, speed in percent, pitch in percent)."""
    from py_nanotts import NanoTTS

    voice = NanoTTS()
    with (
        open(sentences) as file,
        open(f"{out}.int16", "wb") as samples,
        open(f"{out}.lengths", "wb") as lengths,
    ):
        for text, name, speed, pitch in json.load(file):
            # Pico takes whole percents, rounded up
            level = {"speed": (speed - 0.5) / 100, "pitch": (pitch - 0.5) / 100}
            sound = np.frombuffer(voice.speak(text, voice=name, volume=VOLUME, **level), np.int16)
            loud = np.flatnonzero(np.abs(sound) > SILENCE)
            sound = sound[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
            samples.write(sound.tobytes())
            lengths.write(np.int32(len(sound)).tobytes())
            lengths.flush()
        os.fsync(samples.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
