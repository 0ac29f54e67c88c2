"""Trained runs are decoded by beams with language models, and transcribed with times."""

import json

import numpy as np
import pytest
import soundfile
from tones import recording_of, tones_config, tones_words

import famx
from famx.experiment.run import run
from famx.inference import Recognizer
from famx.notation import UserError

ARPA = """\\data\\
ngram 1=5
\\1-grams:
-99 <s>
-1 </s>
-0.5 a
-0.6 b
-0.7 <space>
\\end\\
"""
LM = ("task=lm", "data=text", "data.path=text.txt", "data.block=16", "frontend=tokens")


def test_scores_name_the_decoder_and_all_its_settings(corpus, tmp_path, monkeypatch):
    run(tones_config(corpus), tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.test.json").read_text())
    assert scores["decoder"] == {"name": "ctc_greedy"}
    (tmp_path / "lm.arpa").write_text(ARPA)
    monkeypatch.chdir(tmp_path)
    overrides = ["decode=ctc_beam", "decode.beam=3", "decode.lm=lm.arpa"]
    Recognizer("run", overrides=overrides).evaluate("test")
    (file,) = (tmp_path / "run").glob("scores.test.ctc_beam*.json")
    # a path is absolute, so that it means the same file anywhere
    assert json.loads(file.read_text())["decoder"] == {
        "name": "ctc_beam",
        "beam": 3,
        "blank_threshold": 0.999,
        "lm": str(tmp_path / "lm.arpa"),
        "lm_weight": 0.5,
        "length_bonus": 0.0,
    }


def test_run_can_be_trained_with_a_beam(corpus, tmp_path):
    run(tones_config(corpus, "decode=ctc_beam", "decode.beam=2"), tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.test.json").read_text())
    assert scores["decoder"]["beam"] == 2


def test_run_of_a_language_model_is_added_to_the_scores(corpus, command, tmp_path):
    run(tones_config(corpus), tmp_path / "run")
    (tmp_path / "text.txt").write_text("abc\nbca\ncab\naa\n" * 60)
    size = [word for word in tones_words(corpus)[2:] if not word.startswith(("frontend", "task"))]
    finished = command("train", *LM, *size, "hydra.run.dir=lm")
    assert finished.status == 0, finished.err
    plain = Recognizer(tmp_path / "run", overrides=["decode=ctc_beam"])
    overrides = ["decode=ctc_beam", "decode.lm=lm", "decode.lm_weight=20"]
    fused = Recognizer(tmp_path / "run", overrides=overrides)
    assert fused.evaluate("test").hypotheses != plain.evaluate("test").hypotheses
    # a run that predicts no tokens is no language model
    finished = command("evaluate", "run", "decode=ctc_beam", "decode.lm=run")
    assert finished.status == 2
    assert "decode.lm=" in finished.sentence
    assert "is a run of task=ctc; a language model is a run of task=lm" in finished.sentence
    (tmp_path / "empty").mkdir()
    finished = command("evaluate", "run", "decode=ctc_beam", "decode.lm=empty")
    assert "empty is a folder without a run: it names an ARPA file, or the f" in finished.sentence
    assert "Errno" not in finished.sentence


def test_times_are_in_seconds_at_any_rate(corpus, tmp_path):
    run(tones_config(corpus), tmp_path / "run")
    recognizer = famx.load(tmp_path / "run")
    signal = np.tile(recording_of("abcab"), 3)
    soundfile.write(tmp_path / "a.wav", signal, 16_000)
    soundfile.write(tmp_path / "a8.wav", recording_of("abcab" * 3, 8_000), 8_000)
    seconds = len(signal) / 16_000
    for name in ("a.wav", "a8.wav"):
        [text] = recognizer.transcribe(tmp_path / name)
        [words] = recognizer.transcribe(tmp_path / name, timestamps="word")
        [characters] = recognizer.transcribe(tmp_path / name, "char")
        assert words.text == characters.text == text
        assert [unit.text for unit in words.units] == text.split()
        assert "".join(unit.text for unit in characters.units) == text.replace(" ", "")
        for unit in (*words.units, *characters.units):
            assert 0 <= unit.start < unit.end <= seconds + 0.04
    for arguments, message in (
        ({"window": 0.5}, r"window=0\.5 must be at least 2\.0 seconds"),
        ({"window": float("nan")}, "window=nan must be at least"),
        ({"window": float("inf")}, "window=inf must be at least 2.0 seconds, and finite"),
    ):
        with pytest.raises(UserError, match=message):
            recognizer.transcribe(tmp_path / "a.wav", **arguments)


def test_transcripts_are_text_json_or_subtitles(corpus, command, tmp_path):
    run(tones_config(corpus), tmp_path / "run")
    file = corpus / "test0.wav"
    recognizer = famx.load(tmp_path / "run")
    [transcript] = recognizer.transcribe(file, timestamps="word")

    finished = command("transcribe", "run", file, file, "--format", "json", "--timestamps", "word")
    objects = [json.loads(line) for line in finished.out.splitlines()]
    assert objects[0] == objects[1]
    assert (objects[0]["file"], objects[0]["text"]) == (str(file), transcript.text)
    assert [word["text"] for word in objects[0]["words"]] == transcript.text.split()
    finished = command("transcribe", "run", file, "--format", "json")
    assert json.loads(finished.out) == {"file": str(file), "text": transcript.text}

    finished = command("transcribe", "run", file, "--timestamps", "word")
    rows = [line.split("\t") for line in finished.out.strip().splitlines()]
    assert [row[3] for row in rows] == transcript.text.split()

    finished = command("transcribe", "run", file, "--format", "srt")
    if transcript.units:
        assert finished.out.startswith("1\n00:00:0")
        assert " --> 00:00:0" in finished.out
    for words, message in (
        ((file, file, "--format", "srt"), "--format srt takes one file"),
        ((file, "--format", "srt", "--timestamps", "char"), "remove --timestamps char"),
        ((file, "--window", "1"), "window=1.0 must be at least 2.0 seconds"),
        ((file, "--window", "-inf"), "--window"),
        ((file, "--window=-5"), "--window=-5.0 must be at least 2.0 seconds"),
        ((file, "--format", "xml"), "xml"),
    ):
        finished = command("transcribe", "run", *words)
        assert finished.status == 2
        assert message in finished.sentence


def test_recording_much_longer_than_those_of_the_training_is_named(corpus, tmp_path, caplog):
    run(tones_config(corpus, "trainer.max_steps=1"), tmp_path / "run")
    soundfile.write(tmp_path / "long.wav", np.tile(recording_of("abcab"), 9), 16_000)
    recognizer = famx.load(tmp_path / "run")
    recognizer.transcribe(corpus / "test0.wav")
    recognizer.transcribe(tmp_path / "long.wav", window=2.4)
    assert "may be missing" not in caplog.text
    recognizer.transcribe(tmp_path / "long.wav")
    # texts of two to five letters, of .25 s each
    assert "long.wav passes the model in pieces of up to 11 s" in caplog.text
    assert "training has 1.2 s, so that text may be missing: --window=2 makes" in caplog.text


@pytest.mark.parametrize("window", ["inf", "nan", "0", "1e400"])
def test_window_is_checked_before_the_run_is_loaded(window, command):
    finished = command("transcribe", "no_run", "no_file.wav", f"--window={window}")
    assert finished.status == 2
    assert finished.sentence.startswith(f"famx: --window={float(window)} must be at least 2.0 s")


def test_language_model_may_move_before_a_run_is_resumed(corpus, command, tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    words = tones_words(corpus, "decode=ctc_beam", "decode.lm=lm.arpa", "trainer.max_steps=2")
    assert command("train", *words, "hydra.run.dir=run").status == 0
    (tmp_path / "lm.arpa").rename(tmp_path / "moved.arpa")
    finished = command("train", "resume=run", "trainer.max_steps=3")
    assert finished.status == 2
    assert "lm.arpa does not exist" in finished.sentence
    words = ["resume=run", "trainer.max_steps=3", "decode.lm=moved.arpa"]
    finished = command("train", *words)
    assert finished.status == 0, finished.err
