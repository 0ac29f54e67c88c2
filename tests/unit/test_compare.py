"""`python -m famx.compare` prints a table for each test and draws one picture."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scored_runs import WRONG_HYPOTHESES, write_scored_run

from famx import compare
from famx.analysis import comparison
from famx.analysis.runs import Setting, read_run
from famx.notation import UserError
from famx.training.sweep_dir import find_runs


@pytest.fixture
def run_compare(monkeypatch, capsys):
    """Returns a function that compares runs and returns what is printed, on one line."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        assert compare.main() == 0
        return " ".join(capsys.readouterr().out.split())

    return run


def write_sweep(folder: Path) -> Path:
    """Writes runs of three tests with two optimizers each, and a run without scores."""
    other_text = ["task=lm", "data=text", "data.block=64", "init_from='[a$b]'"]
    for optim, steps in (("adamw", 400), ("fam", 500)):
        optimizer = f"optim={optim}"
        write_scored_run(folder / f"ctc,{optim}", optimizer)
        write_scored_run(folder / f"lm,{optim}", "task=lm", optimizer, steps=steps)
        write_scored_run(folder / f"long,{optim}", optimizer, *other_text)
    (folder / "unscored").mkdir()
    (folder / "unscored" / "config.yaml").write_text((folder / "lm,fam/config.yaml").read_text())
    return folder


def test_each_test_has_a_table_and_all_share_a_picture(tmp_path, run_compare, caplog):
    sweep = write_sweep(tmp_path / "sweep")
    first = sweep / "lm,fam"
    runs = find_runs([str(first), str(sweep)])
    assert runs[0] == first
    assert len(runs) == 7

    output = run_compare(first, sweep)
    # the model of each task
    assert "test: WER of 4 utterances (model=conformer_small, " in output
    assert "data=spoken," in output
    assert "fewer than 50 utterances" in output
    assert output.count("test: loss of 1,000 tokens") == 2
    assert "data.block=64" in output
    assert "init_from=[a$b]" in output
    assert output.count("Not all runs took the same number of steps") == 1
    assert output.index("optim=fam") < output.index("optim=adamw"), "the first run is the baseline"
    assert "unscored is not scored on test" in caplog.text
    assert (sweep / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert f"{first} is named twice, and counts once" in caplog.text
    assert "replaced" not in output
    again = run_compare(sweep)
    assert again.endswith("earlier files are replaced: compare.png, report.html, report.md")


def test_files_remain_where_there_is_nothing_to_compare(tmp_path, run_compare):
    sweep = write_sweep(tmp_path / "sweep")
    run_compare(sweep)
    files = [sweep / name for name in ("compare.png", "report.html", "report.md")]
    before = [file.read_bytes() for file in files]
    assert "nothing to compare" in run_compare(sweep / "lm,fam")
    assert [file.read_bytes() for file in files] == before


def test_a_setting_that_was_not_checked_is_named(tmp_path):
    runs = [write_scored_run(tmp_path / optim, f"optim={optim}") for optim in ("adamw", "fam")]
    (runs[1] / "result.json").write_text(json.dumps({"check": "off"}))
    (result,) = comparison.compare(runs, "test", "wer")
    cautions = [note for note in comparison.notes(result) if "check=off" in note]
    assert len(cautions) == 1
    assert "optim=fam" in cautions[0]
    assert "adamw" not in cautions[0]


def test_the_range_of_the_seeds_is_named_as_such(tmp_path):
    runs = [
        write_scored_run(tmp_path / f"{optim}{seed}", f"optim={optim}", f"seed={seed}")
        for optim in ("adamw", "fam")
        for seed in (0, 1)
    ]
    (result,) = comparison.compare(runs, "test", "wer")
    headings = [column.header for column in comparison.table(result).columns]
    assert "mean %\nmin to max" in headings


def test_the_table_has_rates_intervals_and_verdicts(tmp_path, run_compare):
    baseline = write_scored_run(tmp_path / "a", "optim=adamw")
    worse = write_scored_run(tmp_path / "b", "optim=fam", hypotheses=WRONG_HYPOTHESES)
    (result,) = comparison.compare([baseline, worse], "test", "wer")
    rows = comparison.table(result)
    cells = {column.header: list(column.cells) for column in rows.columns}
    assert [str(label) for label in cells["settings"]] == ["optim=adamw", "optim=fam"]
    assert cells["seeds"] == ["1", "1"]
    assert cells["mean %"] == ["0.0", "40.0"]
    assert cells["verdict"] == ["", "worse,\nthis seed"]
    mean, interval = cells["difference"][1].split("\n")
    assert mean == "+40.0"
    low, _, high = interval.partition(" to ")
    assert 0 < float(low) < 40 < float(high)
    output = run_compare(baseline, worse)
    assert "Each run: 400 steps, 1,024 parameters." in output


def test_steps_and_seeds_have_columns_where_they_differ(tmp_path):
    folders = []
    for name, optim, seed, steps in (("a", "adamw", 0, 400), ("b", "fam", 0, 300)):
        words = [f"optim={optim}", f"seed={seed}"]
        folders.append(write_scored_run(tmp_path / name, *words, steps=steps))
    folders.append(write_scored_run(tmp_path / "c", "optim=fam", "seed=1", steps=200))
    (result,) = comparison.compare(folders, "test", "wer")
    cells = {c.header: list(c.cells) for c in comparison.table(result).columns}
    assert cells["steps"] == ["400", "200\nto 300"]
    assert cells["seeds"] == ["1", "2\n1 shared"]
    assert "params" not in cells


def test_genes_of_sampled_layers_have_a_table(tmp_path):
    run = read_run(write_scored_run(tmp_path / "run", "task=lm"), "test", "loss")
    settings = []
    for i in range(12):
        layers = [{"norm": {"name": ("layernorm", "rmsnorm")[i % 2]}}] * 2
        sampled = run._replace(layers=layers, errors=np.array([1.0 + (i % 2) + 0.01 * (i % 3)]))
        settings.append(Setting(str(i), {0: sampled}))
    rows = comparison.gene_table(comparison.Comparison("", settings, []))
    assert rows.title == "effect of a layer with a gene, 12 models"
    cells = {column.header: list(column.cells) for column in rows.columns}
    assert [str(gene) for gene in cells["gene"]] == ["norm=layernorm", "norm=rmsnorm"]
    assert cells["loss"] == ["-0.500", "+0.500"]
    assert cells["verdict"] == ["better", "worse"]
    no_layers = comparison.Comparison("", [Setting("", {0: run})], [])
    assert comparison.gene_table(no_layers) is None


def test_a_picture_that_cannot_be_written_is_refused(tmp_path, run_compare):
    folder = write_scored_run(tmp_path / "run")
    for file in ("no/where.png", "sweep.foo", tmp_path):
        with pytest.raises(UserError, match=r"must be a file whose name ends in \.png"):
            run_compare(folder, "--png", file)


def test_a_split_that_is_not_scored_is_refused(tmp_path, run_compare):
    with pytest.raises(UserError, match="is not scored on dev"):
        run_compare(write_scored_run(tmp_path / "run"), "--split", "dev")


def test_runs_that_differ_in_fine_tuning_are_two_settings(tmp_path, run_compare):
    words = ["task=lm", "init_from=outputs/large"]
    write_scored_run(tmp_path / "all", *words)
    write_scored_run(tmp_path / "gradual", *words, "finetune.layer_decay=.8")
    output = run_compare(tmp_path / "all", tmp_path / "gradual")
    assert "finetune.layer_decay=1.0" in output
    assert "finetune.layer_decay=0.8" in output
