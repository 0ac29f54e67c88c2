"""`python -m famx.replay` trains a run again, and finds where it differs."""

import json

import pytest
from tones import tones_words


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["trainer.max_steps=7", "trainer.max_time=2"])
def test_run_is_repeated_bit_for_bit_or_the_first_difference_is_named(command, corpus, limit):
    words = [word for word in tones_words(corpus) if not word.startswith("trainer.max_steps")]
    trained = command("train", *words, limit, "hydra.run.dir=run")
    assert trained.status == 0, trained.err
    repeated = command("replay", "run")
    assert repeated.status == 0, repeated.out + repeated.err
    assert "run is repeated bit for bit: " in repeated.out
    # no commands of a folder that is removed
    assert "next:" in trained.out
    assert "next:" not in repeated.out
    # another value in the second report
    with open("run/metrics.jsonl", encoding="utf-8") as file:
        lines = file.read().splitlines()
    report = json.loads(lines[1])
    tag = next(tag for tag in report if tag.endswith("/loss"))
    lines[1] = json.dumps(report | {tag: 0.5})
    with open("run/metrics.jsonl", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    different = command("replay", "run")
    assert different.status == 1
    assert f"run is not repeated: step {report['step']}, {tag}=" in different.out


def test_run_that_is_not_finished_is_refused(command, tmp_path):
    finished = command("replay", tmp_path)
    assert finished.status == 2
    assert "is not a finished run: there is no result.json" in finished.sentence
    finished = command("replay", tmp_path, "optim.lr=1")
    assert "optim.lr=1 cannot be set: a run is repeated as it was trained" in finished.sentence


@pytest.mark.slow
def test_run_that_was_resumed_with_other_settings_is_refused_before_it_trains(command, corpus):
    assert command("train", *tones_words(corpus, "hydra.run.dir=run")).status == 0
    # what changes no result
    assert command("train", "resume=run", "loader.workers=0", "trainer.save_every=3").status == 0
    with_commands("run", ["train trainer.max_steps=7", "train resume=run trainer.max_steps=7"])
    assert command("replay", "run").status == 0
    with_commands("run", ["train", "train resume=run trainer.max_steps=7", "damaged '"])
    refused = command("replay", "run")
    assert refused.status == 2
    assert "run was resumed with trainer.max_steps=7, so that one training" in refused.sentence


def with_commands(folder, commands):
    """Writes the commands that a run says it was started with."""
    with open(f"{folder}/provenance.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"command": words}) + "\n" for words in commands)
