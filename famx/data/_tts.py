"""Script: speaks a list of sentences with SVOX Pico, in a fixed order and a separate process.

The samples of Pico depend on what its process has spoken before. Only a process that speaks a fixed
list from its start reproduces them.

    python _tts.py LIST OUT PARENT

LIST is a JSON list of (text, voice, speed in percent, pitch in percent). The samples of all
utterances go to OUT.int16, one after the other, and the number of samples of each to OUT.lengths.
It ends with the process of the id PARENT, and imports nothing of famx. A change that changes the
samples must increase `RENDERING_VERSION` in _rendering.py.
"""

import json
import os
import sys

import numpy as np

SAMPLE_RATE = 16_000
# a higher volume makes Pico clip
VOLUME = 0.5
# silence that is kept around the speech, in samples: a tenth of a second (the foreign voices end
# with half a second of silence)
MARGIN = SAMPLE_RATE // 10
# largest absolute sample that counts as silence
SILENCE = 200


def main(list_file: str, out: str, parent: str) -> None:
    """Speaks all utterances of a list, as long as the process `parent` exists."""
    from py_nanotts import NanoTTS

    synthesizer = NanoTTS()
    with (
        open(list_file, encoding="utf-8") as file,
        open(f"{out}.int16", "wb") as samples,
        open(f"{out}.lengths", "wb") as lengths,
    ):
        for text, voice, speed, pitch in json.load(file):
            # a killed process cannot end the ones that it started
            if os.getppid() != int(parent):
                return
            # Pico rounds percentages up to integers
            sound = synthesizer.speak(
                text,
                voice=voice,
                volume=VOLUME,
                speed=(speed - 0.5) / 100,
                pitch=(pitch - 0.5) / 100,
            )
            # cut most of the silence at both ends
            signal = np.frombuffer(sound, np.int16)
            loud = np.flatnonzero(np.abs(signal) > SILENCE)
            signal = signal[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
            samples.write(signal.tobytes())
            lengths.write(np.int32(len(signal)).tobytes())
            # the caller reads the progress from the file of lengths
            lengths.flush()
        os.fsync(samples.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
