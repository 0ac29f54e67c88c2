"""Scored runs are read, and grouped by test and setting."""

import json

import numpy as np
import pytest
from scored_runs import WRONG_HYPOTHESES, write_scored_run

from famx.analysis.runs import Setting, UnscoredError, group_by_setting, read_run, title
from famx.analysis.significance import differences
from famx.notation import UserError


def group(*folders, metric: str | None = None) -> list[Setting]:
    return group_by_setting([read_run(folder, "test", metric) for folder in folders])


def labels(*folders) -> list[list[str]]:
    return [setting.label.split("\n") for setting in group(*folders)]


def test_a_run_has_its_errors_steps_and_parameters(tmp_path):
    words = ["seed=3", "optim=fam", "optim.lr=7"]
    run = read_run(
        write_scored_run(tmp_path / "a", *words, hypotheses=WRONG_HYPOTHESES), "test", "wer"
    )
    assert run.errors.tolist() == [1, 1, 1, 1]
    assert run.units.tolist() == [3, 2, 4, 1]
    assert run.rate == pytest.approx(0.4)
    assert (run.seed, run.steps, run.parameters) == (3, 400, 1024)
    assert run.settings["optim"] == "fam"
    assert run.settings["optim.lr"] == "7.0"
    assert "seed" not in run.settings
    assert run.test.startswith("test: WER of 4 utterances\n")


def test_a_loss_is_errors_of_one_unit(tmp_path):
    run = read_run(write_scored_run(tmp_path / "a", "task=lm", loss=2.5), "test", None)
    assert (run.metric, run.rate) == ("loss", 2.5)
    assert run.errors.tolist() == [2.5]
    assert run.test.startswith("test: loss of 1,000 tokens\n")


def test_losses_of_other_data_are_other_tests(tmp_path):
    first = read_run(write_scored_run(tmp_path / "a", "task=lm"), "test", "loss")
    same = read_run(write_scored_run(tmp_path / "b", "task=lm", "optim=fam"), "test", "loss")
    words = ["task=lm", "data=text", "data.block=64"]
    other = read_run(write_scored_run(tmp_path / "c", *words), "test", "loss")
    assert first.test == same.test != other.test
    all_runs = [first, same, other]
    assert title([first, same, other], all_runs) == "test: loss of 1,000 tokens"
    assert title([other], all_runs).startswith("test: loss of 1,000 tokens (data.block=64")


def test_runs_of_the_same_setting_are_grouped_and_paired_by_seed(tmp_path):
    folders = []
    for optim, loss in (("adamw", 1.0), ("fam", 1.5)):
        for seed in (0, 1, 2):
            words = [f"optim={optim}", f"seed={seed}"]
            folder = tmp_path / f"{optim}{seed}"
            folders.append(write_scored_run(folder, *words, loss=loss + 0.1 * seed))
    settings = group(*folders, metric="loss")
    seeds = {setting.label: list(setting.runs) for setting in settings}
    assert seeds == {"optim=adamw": [0, 1, 2], "optim=fam": [0, 1, 2]}
    (difference,) = differences(settings)
    assert difference.mean == pytest.approx(0.5)
    assert difference.verdict == "worse"
    (unpaired,) = differences(group(folders[0], folders[4]))
    assert unpaired.pairs == 0
    assert unpaired.verdict == "no seed\nin common"
    duplicate = write_scored_run(tmp_path / "again", "optim=fam", "seed=2")
    with pytest.raises(UserError, match=r"fam2 and .*again have the same settings and seed=2"):
        group(*folders, duplicate)


def test_labels_are_the_settings_that_distinguish(tmp_path):
    words_by_name = {
        "a": ["optim=adamw"],
        "b": ["optim=fam"],
        "c": ["optim=fam", "optim.lr=7"],
        "d": ["optim=fam", "attention=topk"],
        "e": ["optim=adamw", "attention=topk", "attention.keys=4"],
    }
    folders = {}
    for name, words in words_by_name.items():
        folders[name] = write_scored_run(tmp_path / name, *words)
    assert labels(*folders.values()) == [
        ["attention=multihead", "optim=adamw"],
        ["attention=multihead", "optim=fam", "optim.lr=20.0"],
        ["attention=multihead", "optim=fam", "optim.lr=7.0"],
        ["attention=topk", "attention.keys=16", "optim=fam", "optim.lr=20.0"],
        ["attention=topk", "attention.keys=4", "optim=adamw"],
    ]
    assert labels(folders["b"]) == [["all"]]


def test_labels_have_values_that_are_not_the_default_of_their_part(tmp_path):
    slow = write_scored_run(tmp_path / "slow", "optim=fam")
    fast = write_scored_run(tmp_path / "fast", "optim=adamw", "optim.lr=0.5", "model.n_layers=2")
    assert labels(slow, fast) == [
        ["model.n_layers=4", "optim=fam"],
        ["model.n_layers=2", "optim=adamw", "optim.lr=0.5"],
    ]


def test_labels_distinguish_all_models(tmp_path):
    layers = "[{attention: topk}, {attention: alibi}, {attention: taylor}]"
    all_words = [
        ["model=drawn", "model.draw.seed=3"],
        ["model=drawn", "model.draw.seed=4"],
        ["model=drawn", "model.draw.seed=3", "model.layers=[{attention: multihead}]"],
        ["model=drawn", "model.draw.seed=3", f"model.layers={layers}"],
        ["model.layers=[{attention: topk}]"],
        ["model=transformer"],
    ]
    folders = []
    for i, words in enumerate(all_words):
        folders.append(write_scored_run(tmp_path / str(i), *words))
    all_labels = labels(*folders)
    assert len({tuple(label) for label in all_labels}) == len(all_words)
    assert "model.drawn.seed=3" in all_labels[0]
    assert all(len(line) < 60 for label in all_labels for line in label)


def test_scores_of_unlike_normalisers_or_versions_are_not_of_one_test(tmp_path):
    tests = []
    changes = [
        {},
        {"normaliser_version": "1"},
        {"normaliser_version": "2"},
        {"normaliser": "basic"},
    ]
    for index, change in enumerate(changes):
        folder = write_scored_run(tmp_path / str(index))
        file = folder / "scores.test.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        tests.append(read_run(folder, "test", "wer").test)
    # scores name no version where it is the first one
    assert tests[0] == tests[1]
    assert len(set(tests)) == 3


def test_a_run_without_the_score_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: there is no \S*config\.yaml$"):
        read_run(tmp_path, "test", None)
    with pytest.raises(UnscoredError, match="has no wer on test; its task gives loss"):
        read_run(write_scored_run(tmp_path / "text", "task=lm"), "test", "wer")
    with pytest.raises(UnscoredError, match="is not scored on dev"):
        read_run(write_scored_run(tmp_path / "run"), "dev", None)


@pytest.mark.parametrize("name", ["scores.test.json", "hypotheses.test.tsv", "metrics.jsonl"])
def test_a_damaged_run_is_refused(tmp_path, name):
    folder = write_scored_run(tmp_path / "run")
    incomplete = '{"step": null, "loss": null, "utterances": 3, "wer": 1}'
    for damage in ("{", "[]", "{}", incomplete, "id\tref\thyp\n1\ta\n"):
        (folder / name).write_text(damage)
        with pytest.raises(UserError, match="scored on test, is damaged"):
            read_run(folder, "test", None)


def test_a_diverged_run_has_no_finite_rate(tmp_path):
    run = read_run(write_scored_run(tmp_path / "a", loss=float("nan")), "test", "loss")
    assert np.isnan(run.rate)
