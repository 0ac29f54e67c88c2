"""Script: speaks a list of sentences with SVOX Pico, in one fixed order and a process of its own.

What Pico says depends on what its process said before. The only way to the same samples again is
a process that speaks one fixed list from its start.

    python _tts.py LIST OUT

LIST is a JSON list of (text, voice, speed in percent, pitch in percent). The samples of all
utterances go to OUT.int16, one after the other, and the number of samples of each to OUT.lengths.
It imports nothing of famx. Whoever changes its samples raises `RENDERING_VERSION` in spoken.py.
"""

import json
import os
import sys

import numpy as np

SAMPLE_RATE = 16_000
# any louder, and Pico clips
VOLUME = 0.5
# silence around the speech, in samples: a tenth of a second stays (the foreign voices end in half
# a second of it)
MARGIN = SAMPLE_RATE // 10
# largest absolute sample that counts as silence
SILENCE = 200


def main(list_file: str, out: str) -> None:
    """Speaks all utterances of a list."""
    from py_nanotts import NanoTTS

    synthesizer = NanoTTS()
    with (
        open(list_file) as file,
        open(f"{out}.int16", "wb") as samples,
        open(f"{out}.lengths", "wb") as lengths,
    ):
        for text, voice, speed, pitch in json.load(file):
            # Pico takes whole percents, rounded up
            sound = synthesizer.speak(
                text,
                voice=voice,
                volume=VOLUME,
                speed=(speed - 0.5) / 100,
                pitch=(pitch - 0.5) / 100,
            )
            signal = np.frombuffer(sound, np.int16)
            loud = np.flatnonzero(np.abs(signal) > SILENCE)
            signal = signal[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
            samples.write(signal.tobytes())
            lengths.write(np.int32(len(signal)).tobytes())
            # the caller reads progress off the file of lengths
            lengths.flush()
        os.fsync(samples.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
