"""python -m famx.generate as a user runs it."""

import pytest
from tones import TINY, tones_words

TEXT = (
    *("task=lm", "data=text", "data.path=text.txt", "data.block=8"),
    *(word for word in TINY if word.startswith(("model", "layer", "trainer"))),
)


@pytest.fixture
def run(command):
    finished = command("train", *TEXT, "hydra.run.dir=run")
    assert finished.status == 0, finished.err
    return command


def test_prompt_is_continued(run):
    written = run("generate", "run", "--prompt", "to be", "--tokens", "20", "--samples", "2")
    assert written.status == 0, written.err
    first, second = written.out.splitlines()
    assert first != second
    for line in (first, second):
        assert line.startswith("to be")
        assert len(line) == 25
    again = run("generate", "run", "--prompt", "to be", "--tokens", "20", "--samples", "2")
    assert again.out == written.out


def test_edited_run_is_used_only_if_edits_are_trusted(run, tmp_path):
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text() + "# edited\n")
    refused = run("generate", "run", "--prompt", "to")
    assert refused.status == 2
    assert "config.yaml has changed since the run's checkpoints were saved" in refused.sentence
    assert run("generate", "run", "--prompt", "to", "--trust-edits", "--tokens", "2").status == 0


def test_mistakes_are_refused(run, corpus):
    for words, sentence in {
        ("run", "--prompt", "é"): "--prompt has characters outside the vocabulary: 'é'",
        ("run", "--prompt", ""): "--prompt is empty",
        ("run", "--tokens", "0"): "--tokens=0 must be at least 1",
        ("run", "--top-p", "0"): "--top-p=0.0 must be above 0 and at most 1",
        ("run", "--temperature", "-1"): "--temperature=-1.0 must be at least 0",
        ("run", "optim.lr=1"): "optim.lr=1 cannot be set for a trained run",
        ("run", "data.unit=bytes"): "data.unit=bytes must be chars, as in the training",
        ("run", "data.vocab_size=300"): "data.vocab_size=300 must be 1024, as in the training",
        ("nowhere",): "nowhere is not a run",
    }.items():
        finished = run("generate", "--prompt", "to", *words)
        assert finished.status == 2
        assert sentence in finished.sentence
    assert run("train", *tones_words(corpus, "hydra.run.dir=speech")).status == 0
    finished = run("generate", "speech", "--prompt", "to")
    assert finished.sentence.endswith("speech is a run of task=ctc; a run of task=lm writes text")
