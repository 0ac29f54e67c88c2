"""What `python -m famx.compare` makes of scored runs: who is held against whom, and how sure of it one can be."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir

from famx import compare as verb
from famx import verdict
from famx.config import CONF, plain, publish
from famx.experiment import settle
from famx.folder import runs_in
from famx.notation import UserError
from famx.settings import LoaderConfig, TrainerConfig
from famx.task.base import Errors, Evaluation
from famx.verdict import Run, compare, difference, read

publish(trainer=TrainerConfig, loader=LoaderConfig)
REFERENCES = ["one two three", "four five", "six seven eight nine", "ten"]


def leave(folder, *words, heard=REFERENCES, loss=1.0, steps=400):
    """A run's folder as training and scoring leave it, composed from the words."""
    folder.mkdir(parents=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = settle(plain(compose("train", list(words))))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 50}) + "\n" + json.dumps({"step": steps}) + "\n")
    speech = config["task"]["name"] == "ctc"
    scores = {name: Errors(0, 0, 0, 0, 1, 0, 0) for name in ("wer", "cer")} if speech else {}
    texts = ([str(i) for i in range(len(REFERENCES))], REFERENCES, heard) if speech else ([], [], [])
    Evaluation(loss, scores, *texts, 1000, 1).write(folder, "test", "none")
    return folder


def of(*folders, metric=None):
    return compare([read(folder, "test", metric) for folder in folders])


def drawn(rates, words=4):
    """An arm of simulated runs, a row of errors per utterance for each seed."""
    units = np.full(rates.shape[1], words)
    return {seed: Run(Path("."), {}, seed, 1, "wer", ("test",), errors, units) for seed, errors in enumerate(rates)}


def test_an_arm_does_not_differ_from_itself_and_the_other_way_round_the_sign_turns():
    rng = np.random.default_rng(1)
    one, two = (drawn(rng.integers(0, 4, size=(3, 60))) for _ in range(2))
    assert difference(one, one)[:3] == (0, 0, 0) and difference(one, one).verdict == "not shown"
    there, back = difference(one, two), difference(two, one)
    assert there.mean == -back.mean
    assert [there.low, there.high] == pytest.approx([-back.high, -back.low], rel=0.2)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, monkeypatch):
    monkeypatch.setattr(verdict, "RESAMPLES", 1000)
    rng, covered, truth = np.random.default_rng(2), [], 0.3
    for _ in range(200):
        hard = rng.gamma(2.0, size=60)  # utterances that both find hard
        lucky = 0.2 * (seeds > 1) * rng.standard_normal((2, seeds, 1))  # trainings that fell out well or badly
        both = rng.poisson(hard, size=(2, seeds, 60)) + lucky + np.array([0, truth])[:, None, None]
        found = difference(drawn(both[0], 1), drawn(both[1], 1))
        covered.append(found.low <= truth <= found.high)
    assert 0.91 <= np.mean(covered) <= 1


def test_what_is_hard_for_both_is_no_chance_of_the_difference():
    rng = np.random.default_rng(3)
    hard = rng.integers(0, 40, size=200)
    one, two = drawn(hard[None]), drawn(hard[None] + rng.integers(0, 2, size=200))
    found = difference(one, two)
    assert 0 < found.low < found.mean == pytest.approx(two[0].rate - one[0].rate)
    assert found.high - found.low < 0.1 * hard.std()


def test_one_seed_speaks_for_itself_alone_and_a_loss_of_one_seed_for_nothing(tmp_path):
    wrong = ["one two four", "four", "six eight nine", "on"]
    one, two = leave(tmp_path / "a", "optim=adamw"), leave(tmp_path / "b", "optim=fam", heard=wrong)
    (found,) = of(one, two).differences
    assert found.verdict == "worse, this seed" and found.mean == pytest.approx(0.4)
    (found,) = of(two, one).differences
    assert found.verdict == "better, this seed" and found.mean == pytest.approx(-0.4)
    (found,) = of(one, two, metric="loss").differences
    assert found.verdict == "not known" and np.isnan([found.low, found.high]).all()


def test_seeds_of_the_same_settings_are_one_arm_and_pairs_have_the_same_seed(tmp_path):
    folders = [
        leave(tmp_path / f"{optim}{seed}", f"optim={optim}", f"seed={seed}", loss=loss + 0.1 * seed)
        for optim, loss in (("adamw", 1.0), ("fam", 1.5))
        for seed in (0, 1, 2)
    ]
    found = of(*folders, metric="loss")
    assert {label: list(arm) for label, arm in found.arms.items()} == {
        "optim=adamw": [0, 1, 2],
        "optim=fam": [0, 1, 2],
    }
    assert found.differences[0].mean == pytest.approx(0.5) and found.differences[0].verdict == "worse"
    with pytest.raises(UserError, match=r"same seeds, but .*adamw0 has 0 and .*fam1 has 1"):
        of(folders[0], folders[4])
    again = leave(tmp_path / "again", "optim=fam", "seed=2")
    with pytest.raises(UserError, match=r"fam2 and .*again have the same settings and seed"):
        of(*folders, again)


def test_settings_are_told_where_they_tell_arms_apart(tmp_path):
    words = {
        "a": ["optim=adamw"],
        "b": ["optim=fam"],
        "c": ["optim=fam", "optim.lr=7"],
        "d": ["optim=fam", "attention=topk", "attention.keys=4"],
        "e": ["model=drawn", "model.draw.seed=3", "optim=fam"],
        "f": ["model=drawn", "model.draw.seed=4", "optim=fam"],
        "g": ["model.layers=[{attention: topk}, {attention: alibi}, {attention: cosine}, {n_heads: 2}]", "optim=fam"],
    }
    labels = list(of(*(leave(tmp_path / name, *given) for name, given in words.items())).arms)
    assert len(labels) == len(words)
    a, b, c, d, e, f, g = (label.split("\n") for label in labels)
    usual = ["model=transformer", "model.layers=null"]
    assert a == [*usual, "attention=multihead", "optim=adamw"]
    assert b == [*usual, "attention=multihead", "optim=fam", "optim.lr=20.0"]
    assert c == [*usual, "attention=multihead", "optim=fam", "optim.lr=7.0"]
    assert d == [*usual, "attention=topk", "optim=fam", "optim.lr=20.0"]
    assert (e, f) == tuple(["model=drawn", f"model.drawn.seed={i}", *b[-2:]] for i in (3, 4))
    assert len(g) == 4 and g[1].startswith("model.layers=") and len(g[1]) < 30
    (alone,) = of(tmp_path / "b").arms
    assert alone == "all"


def test_more_arms_ask_for_more_of_each(tmp_path):
    wrong = ["one two four", "four", "six eight nine", "on"]
    folders = [leave(tmp_path / name, f"optim={name}", heard=wrong) for name in ("fam", "adamw", "muon", "sgd")]
    best = leave(tmp_path / "best", "optim=lookahead")
    few, many = of(best, folders[0]).differences[0], of(best, *folders).differences[0]
    assert many.low < few.low and many.high >= few.high and many.mean == few.mean


def test_each_test_has_a_table_of_its_own_and_all_share_a_picture(tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "sweep"
    for optim in ("adamw", "fam"):
        leave(sweep / f"ctc,{optim}", f"optim={optim}")
        leave(sweep / f"lm,{optim}", "task=lm", f"optim={optim}", steps=500 if optim == "fam" else 400)
    (sweep / "unscored").mkdir()
    (sweep / "unscored" / "config.yaml").write_text((sweep / "lm,fam" / "config.yaml").read_text())
    assert len(runs_in([str(sweep), str(sweep / "lm,fam")])) == 5
    monkeypatch.setattr(sys, "argv", ["compare", str(sweep)])
    assert verb.main() == 0
    told = capsys.readouterr().out
    assert "test: WER of 4 utterances" in told and "test: loss of 1,000 tokens" in told
    assert told.count("optim=fam") == 2 and told.count("Not all trained for as many steps") == 1
    assert (sweep / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_scored_run_is_refused_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is not a run"):
        read(tmp_path, "test", None)
    folder = leave(tmp_path / "run", "task=lm")
    with pytest.raises(UserError, match="has a loss on test and no wer"):
        read(folder, "test", "wer")
    monkeypatch.setattr(sys, "argv", ["compare", str(folder), "--split", "dev"])
    with pytest.raises(UserError, match="no run here is scored on dev"):
        verb.main()
    for damage in ("{", "[]", "{}"):
        (folder / "scores.test.json").write_text(damage)
        with pytest.raises(UserError, match="cannot be read"):
            read(folder, "test", None)
