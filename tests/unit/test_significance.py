"""What `python -m famx.compare` makes of scored runs: who is held against whom, and how sure of it one can be."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir

from famx import compare
from famx.analysis import runs as verdict
from famx.analysis.gene_effects import marginal_effects
from famx.analysis.runs import Run, Setting, UnscoredError, group_by_setting, read_run
from famx.analysis.significance import difference, differences
from famx.config.schema import CONF, register_schemas, to_plain
from famx.experiment.resolve import resolve
from famx.notation import UserError
from famx.task._wer import Errors
from famx.training.evaluate import Evaluation
from famx.training.loader import LoaderConfig
from famx.training.run_dir import find_runs
from famx.training.trainer import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
REFERENCES = ["one two three", "four five", "six seven eight nine", "ten"]


def leave(folder, *words, heard=REFERENCES, loss=1.0, steps=400):
    """A run's folder as training and scoring leave it, composed from the words."""
    folder.mkdir(parents=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve(to_plain(compose("train", list(words))))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "groups.tsv").write_text("kind\ttensors\tparameters\nconv\t2\t1000\nnorm\t1\t24\n")
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 50}) + "\n" + json.dumps({"step": steps}) + "\n"
    )
    speech = config["task"]["name"] == "ctc"
    scores = {name: Errors(0, 0, 0, 0, 1, 0, 0) for name in ("wer", "cer")} if speech else {}
    texts = (
        ([str(i) for i in range(len(REFERENCES))], REFERENCES, heard) if speech else ([], [], [])
    )
    Evaluation(loss, scores, *texts, 1000, 1).write(folder, "test", "none")
    return folder


def of(*folders, metric=None):
    """The arms of the runs, by their labels, and their differences."""
    found = group_by_setting([read_run(folder, "test", metric) for folder in folders])
    return {arm.label: arm.runs for arm in found}, differences(found)


def drawn(rates, words=4):
    """An arm of simulated runs, a row of errors per utterance for each seed."""
    units = np.full(rates.shape[1], words)
    return {
        seed: Run(Path("."), {}, seed, 1, 1, "wer", "test", errors, units)
        for seed, errors in enumerate(rates)
    }


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
        lucky = (
            0.2 * (seeds > 1) * rng.standard_normal((2, seeds, 1))
        )  # trainings that fell out well or badly
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


@pytest.mark.parametrize("arms", [1, 7, 30])
def test_the_interval_of_a_loss_is_students(arms):
    """The quantiles of t of two degrees of freedom are (2 p - 1) sqrt(2 / (4 p (1 - p)))."""
    losses = np.array([[0.1], [0.4], [0.7]])
    found = difference(drawn(0 * losses, 1), drawn(losses, 1), 1 - 0.05 / arms)
    p = 1 - 0.025 / arms
    reach = (2 * p - 1) * (2 / (4 * p * (1 - p))) ** 0.5 * losses.std(ddof=1) / 3**0.5
    assert [found.low, found.high] == pytest.approx([0.4 - reach, 0.4 + reach], rel=0.1)


def test_one_seed_speaks_for_itself_alone_and_a_loss_of_one_seed_for_nothing(tmp_path):
    wrong = ["one two four", "four", "six eight nine", "on"]
    one, two = leave(tmp_path / "a", "optim=adamw"), leave(tmp_path / "b", "optim=fam", heard=wrong)
    (found,) = of(one, two)[1]
    assert found.verdict == "worse,\nthis seed" and found.mean == pytest.approx(0.4)
    (found,) = of(two, one)[1]
    assert found.verdict == "better,\nthis seed" and found.mean == pytest.approx(-0.4)
    (found,) = of(one, two, metric="loss")[1]
    assert found.verdict == "not known" and np.isnan([found.low, found.high]).all()
    (found,) = of(one, leave(tmp_path / "c", "optim=sgd", loss=float("nan")), metric="loss")[1]
    assert found.verdict == "not known"


def test_seeds_of_the_same_settings_are_one_arm_and_pairs_have_the_same_seed(tmp_path):
    folders = [
        leave(tmp_path / f"{optim}{seed}", f"optim={optim}", f"seed={seed}", loss=loss + 0.1 * seed)
        for optim, loss in (("adamw", 1.0), ("fam", 1.5))
        for seed in (0, 1, 2)
    ]
    found, (more,) = of(*folders, metric="loss")
    assert {label: list(arm) for label, arm in found.items()} == {
        "optim=adamw": [0, 1, 2],
        "optim=fam": [0, 1, 2],
    }
    assert more.mean == pytest.approx(0.5) and more.verdict == "worse"
    (apart,) = of(folders[0], folders[4])[1]
    assert apart.pairs == 0 and apart.verdict == "no seed\nin common"
    again = leave(tmp_path / "again", "optim=fam", "seed=2")
    with pytest.raises(UserError, match=r"fam2 and .*again have the same settings and seed"):
        of(*folders, again)


def test_settings_are_told_where_they_tell_arms_apart(tmp_path):
    words = {
        "a": ["optim=adamw"],
        "b": ["optim=fam"],
        "c": ["optim=fam", "optim.lr=7"],
        "d": ["optim=fam", "attention=topk"],
        "e": ["optim=adamw", "attention=topk", "attention.keys=4"],
    }
    labels = [
        label.split("\n")
        for label in of(*(leave(tmp_path / name, *given) for name, given in words.items()))[0]
    ]
    a, b, c, d, e = labels
    assert a == ["attention=multihead", "optim=adamw"]
    assert b == ["attention=multihead", "optim=fam", "optim.lr=20.0"]
    assert c == ["attention=multihead", "optim=fam", "optim.lr=7.0"]
    assert d == ["attention=topk", "attention.keys=16", "optim=fam", "optim.lr=20.0"]
    assert e == ["attention=topk", "attention.keys=4", "optim=adamw"]
    (alone,) = of(tmp_path / "b")[0]
    assert alone == "all"
    fast = leave(tmp_path / "fast", "optim=adamw", "optim.lr=0.5", "model.n_layers=2")
    assert list(of(tmp_path / "b", fast)[0]) == [
        "model.n_layers=4\noptim=fam",
        "model.n_layers=2\noptim=adamw\noptim.lr=0.5",
    ]


def test_no_two_models_are_taken_for_one(tmp_path):
    words = [
        ["model=drawn", "model.draw.seed=3"],
        ["model=drawn", "model.draw.seed=4"],
        ["model=drawn", "model.draw.seed=3", "model.layers=[{attention: multihead}]"],
        [
            "model=drawn",
            "model.draw.seed=3",
            "model.layers=[{attention: topk}, {attention: alibi}, {attention: taylor}]",
        ],
        ["model.layers=[{attention: topk}]"],
        ["model=transformer"],
    ]
    labels = list(of(*(leave(tmp_path / str(i), *given) for i, given in enumerate(words)))[0])
    assert len(set(labels)) == len(words)
    assert "model.drawn.seed=3" in labels[0] and all(
        len(line) < 60 for label in labels for line in label.split("\n")
    )


def test_more_arms_ask_for_more_of_each(tmp_path):
    wrong = ["one two four", "four", "six eight nine", "on"]
    folders = [
        leave(tmp_path / name, f"optim={name}", heard=wrong)
        for name in ("fam", "adamw", "muon", "sgd")
    ]
    best = leave(tmp_path / "best", "optim=lookahead")
    few, many = of(best, folders[0])[1][0], of(best, *folders)[1][0]
    assert many.low < few.low and many.high >= few.high and many.mean == few.mean


def test_each_test_has_a_table_of_its_own_and_all_share_a_picture(
    tmp_path, monkeypatch, capsys, caplog
):
    sweep = tmp_path / "sweep"
    for optim in ("adamw", "fam"):
        leave(sweep / f"ctc,{optim}", f"optim={optim}")
        leave(
            sweep / f"lm,{optim}", "task=lm", f"optim={optim}", steps=500 if optim == "fam" else 400
        )
        leave(
            sweep / f"long,{optim}",
            "task=lm",
            f"optim={optim}",
            "data=text",
            "data.block=64",
            "init_from='[a$b]'",
        )
    (sweep / "unscored").mkdir()
    (sweep / "unscored" / "config.yaml").write_text((sweep / "lm,fam" / "config.yaml").read_text())
    first = sweep / "lm,fam"
    assert (
        len(find_runs([str(first), str(sweep)])) == 7
        and find_runs([str(first), str(sweep)])[0] == first
    )
    monkeypatch.setattr(sys, "argv", ["compare", str(first), str(sweep)])
    assert compare.main() == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "test: WER of 4 utterances (data=spoken," in told and "fewer than 50 utterances" in told
    assert (
        told.count("test: loss of 1,000 tokens") == 2
        and "data.block=64" in told
        and "init_from=[a$b]" in told
    )
    assert (
        told.count("Not all trained for as many steps") == 1
        and "unscored is not scored on test" in caplog.text
    )
    assert told.index("optim=fam") < told.index("optim=adamw")
    assert (tmp_path / "sweep" / "compare.png").read_bytes().startswith(b"\x89PNG")
    for file in ("no/where.png", "sweep.foo", str(tmp_path)):
        monkeypatch.setattr(sys, "argv", ["compare", str(first), "--png", file])
        with pytest.raises(UserError, match=r"must be a file whose name ends in \.png"):
            compare.main()


def test_what_is_no_scored_run_is_refused_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is not a run"):
        read_run(tmp_path, "test", None)
    folder = leave(tmp_path / "run")
    with pytest.raises(UnscoredError, match="has a loss on test and no wer"):
        read_run(leave(tmp_path / "text", "task=lm"), "test", "wer")
    monkeypatch.setattr(sys, "argv", ["compare", str(folder), "--split", "dev"])
    with pytest.raises(UserError, match="is not scored on dev"):
        compare.main()
    for name in ("scores.test.json", "hypotheses.test.tsv", "metrics.jsonl"):
        whole = (folder / name).read_text()
        for damage in (
            "{",
            "[]",
            "{}",
            '{"step": null, "loss": null, "utterances": 3, "wer": 1}',
            "id\tref\thyp\n1\ta\n",
        ):
            (folder / name).write_text(damage)
            with pytest.raises(UserError, match="scored on test, is damaged"):
                read_run(folder, "test", None)
        (folder / name).write_text(whole)


def test_what_a_gene_of_drawn_layers_does_is_found_and_nothing_else():
    rng, alarms = np.random.default_rng(0), []

    def layer():
        return {
            "n_heads": int(rng.choice([2, 4, 8])),
            "attention": {"name": "topk", "keys": 16}
            if rng.random() < 0.5
            else {"name": "multihead"},
            "feedforward": {
                "name": "gelu",
                "activation": str(rng.choice(["relu", "silu", "mish"])),
            },
            "layer": {"name": str(rng.choice(["prenorm", "postnorm", "skip"]))},
        }

    for _ in range(60):
        arms = []
        for _ in range(30):
            layers = [layer() for _ in range(4)]
            rate = (
                1
                + 0.3 * sum(each["layer"]["name"] == "skip" for each in layers)
                + 0.1 * rng.standard_normal()
            )
            seeds = {
                s: Run(Path("."), {}, s, 1, 1, "loss", "", np.array([rate]), np.ones(1), layers)
                for s in (0, 1)
            }
            arms.append(Setting("", seeds))
        found = marginal_effects(arms)
        assert found == sorted(found, key=lambda effect: effect.mean)
        told = {effect.gene: effect for effect in found}
        assert 0.1 < told["layer=skip"].low < told["layer=skip"].high < 0.5
        others = [effect for gene, effect in told.items() if not gene.startswith("layer=")]
        alarms.append(any(effect.low > 0 or effect.high < 0 for effect in others))
    assert np.mean(alarms) <= 0.1
    assert {"n_heads=4", "attention=topk", "feedforward=gelu activation=silu"} <= set(told)
    assert not any("keys" in gene for gene in told)  # of which there is one value alone
    assert marginal_effects(arms[:3]) == marginal_effects([]) == []
    lost = Setting("", {0: arms[0].runs[0]._replace(errors=np.array([np.nan]))})
    assert marginal_effects([lost, *arms[1:]]) == marginal_effects(arms[1:])


def test_depth_and_other_settings_are_no_effect_of_a_gene():
    rng, alarms = np.random.default_rng(1), []
    for _ in range(40):
        arms = []
        for i in range(24):
            depth, optim = (2, 6)[i % 2], ("adamw", "fam")[i // 2 % 2]
            layers = [
                {"norm": {"name": str(rng.choice(["x", "y"]))}, "n_heads": int(rng.choice([2, 4]))}
                for _ in range(depth)
            ]
            rate = 3 - 0.2 * depth + (optim == "fam") + 0.05 * rng.standard_normal()
            run = Run(
                Path("."),
                {"optim": optim},
                0,
                1,
                1,
                "loss",
                "",
                np.array([rate]),
                np.ones(1),
                layers,
            )
            arms.append(Setting("", {0: run}))
        alarms.append(any(effect.low > 0 or effect.high < 0 for effect in marginal_effects(arms)))
    assert np.mean(alarms) <= 0.1
