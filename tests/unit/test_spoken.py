"""Embedded speech: phrases and speakers of each split, and their rendering."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from famx.data import _rendering, _tts
from famx.data._normalisers import normalise_basic
from famx.data._rendering import cached_rendering, render
from famx.data.spoken import Spoken, recipe
from famx.notation import UserError

SIZES = {"train": 14, "dev": 3, "test": 3, "unheard": 3}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FAMX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_no_phrase_is_in_two_splits():
    utterances = recipe(Spoken.sizes)
    assert len({u.text for u in utterances}) == len(utterances) == sum(Spoken.sizes.values())


def test_no_speaker_is_similar_to_one_of_training():
    utterances = recipe(Spoken.sizes)
    speakers = {split: set() for split in Spoken.splits}
    for split, _, voice, speed, pitch in utterances:
        speakers[split].add((voice, speed, pitch))
    sizes = {split: len(speakers[split]) for split in Spoken.splits}
    assert sizes == {"train": 75, "dev": 10, "test": 10, "unheard": 4}
    for split in ("dev", "test", "unheard"):
        for _, speed, pitch in speakers[split]:
            for _, train_speed, train_pitch in speakers["train"]:
                speed_distance = abs(speed - train_speed) / max(speed, train_speed)
                pitch_distance = abs(pitch - train_pitch) / max(pitch, train_pitch)
                assert max(speed_distance, pitch_distance) >= 0.15
    assert not speakers["dev"] & speakers["test"]
    assert {voice for voice, *_ in speakers["unheard"]} == {"en-GB"}
    assert "en-GB" not in {voice for voice, *_ in speakers["train"]}


def test_phrases_are_normalised_and_words_of_test_occur_in_training():
    utterances = recipe(Spoken.sizes)
    words = {split: set() for split in Spoken.splits}
    for utterance in utterances:
        assert utterance.text == normalise_basic(utterance.text)
        words[utterance.split].update(utterance.text.split())
    assert words["test"] <= words["train"]
    assert 200 <= len(words["train"]) <= 400


def test_two_renderings_are_equal(tmp_path):
    first = Spoken("test", **Spoken.example(tmp_path))
    render(recipe(SIZES), tmp_path / "second", show_progress=False)
    second = Spoken("test", rendering=str(tmp_path / "second"))
    for index in range(3):
        assert torch.equal(first[index].signal, second[index].signal)
    assert all(0.3 < seconds < 8 for seconds in second.lengths)


def test_interrupted_rendering_leaves_nothing_in_the_cache(cache, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_rendering, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cached_rendering(recipe(SIZES))
    assert not list(cache.iterdir())


def test_two_renderings_at_once_share_one_folder(cache):
    folders = []

    def render_one():
        folders.append(cached_rendering(recipe(SIZES)))

    renderers = [threading.Thread(target=render_one) for _ in range(2)]
    for renderer in renderers:
        renderer.start()
    for renderer in renderers:
        renderer.join()
    assert folders == [*cache.iterdir()] * 2


def test_cached_rendering_is_read_without_rendering(cache, monkeypatch):
    folder = cached_rendering(recipe(SIZES))
    monkeypatch.setattr(_rendering, "render", None)
    assert cached_rendering(recipe(SIZES)) == folder


def test_failure_of_the_synthesizer_is_reported(cache, monkeypatch, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text("raise SystemExit('no voice')")
    monkeypatch.setattr(_tts, "__file__", str(script))
    with pytest.raises(UserError, match=r"^py-nanotts failed: no voice$"):
        cached_rendering(recipe(SIZES))
    assert not list(cache.iterdir())


KILLED = """\
import os, signal, sys
from pathlib import Path
from famx.data import _rendering
from famx.data.spoken import recipe

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

_rendering._wait = kill
_rendering.render(recipe({"train": 3000, "dev": 3, "test": 3, "unheard": 3}), Path(sys.argv[1]))
"""


def test_speakers_end_with_a_process_that_is_killed(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # the speakers inherit the pipe, which ends when the last of them does
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "rendering")],
        env=environment,
        stdout=subprocess.PIPE,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    for shard in range(2):
        assert len(_rendering._read_lengths(tmp_path / "rendering", shard)) < 1500


@pytest.mark.parametrize("file", ["utterances.json", "0.lengths", "1.int16"])
def test_incomplete_rendering_is_refused(file, tmp_path):
    options = Spoken.example(tmp_path)
    (tmp_path / "rendering" / file).unlink()
    with pytest.raises(UserError, match=r"rendering holds no (rendered speech|complete rendering)"):
        Spoken("dev", **options)
