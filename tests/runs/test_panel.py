"""The panel: its files, and all of its tasks trained with the same settings."""

import json
import subprocess
import sys

import pytest
import soundfile
from tones import recording_of

from famx.analysis.panel import (
    Entry,
    Result,
    choose,
    describe,
    mean_over_seeds,
    read_entries,
    read_entry,
    rows,
)
from famx.notation import UserError

pytestmark = pytest.mark.slow

NAMES = (
    *("yesno", "digits", "digits_unheard", "libri_half", "spoken", "keywords", "shakespeare"),
    *("trec6", "subj"),
)
TINY = (
    *("trainer.max_steps=2", "trainer.eval_every=2", "trainer.device=cpu", "trainer.threads=1"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=1", "probe=off"),
)


@pytest.fixture
def data(tmp_path):
    """Returns a folder with tiny data of three tasks, in the layout of the panel."""
    folder = tmp_path / "data"
    speech = folder / "yesno"
    speech.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = []
        for i in range(6):
            text = "abc"[i % 3] * 2 + "abc"[i // 3]
            soundfile.write(speech / f"{split}{i}.wav", recording_of(text), 16_000)
            lines.append(f"{split}{i}.wav\t{text}\t{split}")
        (speech / f"{split}.tsv").write_text("\n".join(lines))
    for name, files in (("trec6", ("train", "test")), ("subj", ("all",))):
        (folder / "text" / name).mkdir(parents=True)
        lines = [f"{'ab'[i % 2]}\twho is number {i} of {'ab'[i % 2]} ?" for i in range(40)]
        for file in files:
            (folder / "text" / name / f"{file}.tsv").write_text("\n".join(lines))
    return folder


def panel(folder, *words):
    command = [sys.executable, "-m", "famx.panel", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


def test_tasks_are_trained_and_listed_with_their_references(data, tmp_path):
    words = ("--data", data, "--only", "trec6,subj", *TINY)
    result = panel(tmp_path, *words)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "outputs").glob("panel_*")
    lines = (folder / "panel.md").read_text().splitlines()
    for name, reference in (("trec6", "91.2 % (CNN-rand)"), ("subj", "89.6 % (CNN-rand)")):
        scores = json.loads((folder / name / "scores.test.json").read_text())
        (row,) = (line for line in lines if line.startswith(f"| {name} |"))
        # the score of the file is an error, that of the panel an accuracy
        accuracy = 100 * (1 - scores["error"]["rate"])
        assert f"| {accuracy:.2f} % ({100 * (1 - scores['error']['high']):.2f} to " in row
        assert "higher is better" in row and reference in row
    # a call for one of them keeps the row of the other
    assert panel(tmp_path, *words, "--only", "trec6").returncode == 0
    assert (folder / "panel.md").read_text().splitlines() == lines
    # the same command trains nothing again
    repeated = panel(tmp_path, *words)
    assert repeated.returncode == 0, repeated.stderr
    assert "finished before" in repeated.stdout and "step 2/2" not in repeated.stdout


def test_score_of_several_seeds_is_their_mean_and_range(data, tmp_path):
    result = panel(tmp_path, "--data", data, "--only", "trec6", "--seeds", "0,3", *TINY)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "outputs").glob("panel_*")
    accuracies = []
    for seed in (0, 3):
        run = folder / f"trec6_seed{seed}"
        assert f"seed: {seed}\n" in (run / "config.yaml").read_text()
        scores = json.loads((run / "scores.test.json").read_text())
        accuracies.append(100 * (1 - scores["error"]["rate"]))
    low, high = sorted(accuracies)
    score = f"{(low + high) / 2:.2f} % (mean of seeds 0, 3: {low:.2f} to {high:.2f})"
    assert score in (folder / "panel.md").read_text()


def test_settings_that_do_not_fit_a_task_are_a_sentence_in_its_row(data, tmp_path):
    only = ("--only", "yesno,trec6,digits")
    result = panel(tmp_path, "--data", data, *only, *TINY, "task.vocab_size=0")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    (folder,) = (tmp_path / "outputs").glob("panel_*")
    rows_of = {
        line.split(" | ")[0][2:]: line for line in (folder / "panel.md").read_text().splitlines()
    }
    assert "task=classify has no task.vocab_size" in rows_of["trec6"]
    assert "digits needs fsdd in --data" in rows_of["digits"]
    assert (folder / "yesno" / "scores.test.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "trec"), "--only trec: no task of the panel; did you mean trec6?"),
        (("--minutes", "0.5"), "--minutes 0.5 is less than"),
        (("--minutes", "nan"), "--minutes nan must be more than 0"),
        (("--minutes", "soon"), "invalid float value"),
        (("seed=0,1",), "seed=0,1 has several values"),
        (("--seeds", "0,-1"), "--seeds 0,-1: expected numbers such as 0,1,2"),
        (("--seeds", "0,0"), "--seeds 0,0: each seed must be named once"),
        (("--seeds", "0,1", "seed=2"), "seed=2: --seeds sets the seed"),
        (("--seeds", "0,1", "--minutes", "3"), "--minutes 3 is less than the 4.3 minutes of yesno"),
        (("experiment=digits",), "experiment=digits: the panel sets this option itself"),
        (("fast",), "fast is not KEY=VALUE"),
        (("attention=myelinate",), "attention=myelinate: no such part; did you mean myelinated"),
        (("sweep.job=2",), "sweep.job"),
        (("--only", "yesno"), "yesno needs --data FOLDER, with yesno in it"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(words, message, command):
    result = command("panel", *words)
    assert result.status == 2 and message in result.sentence


def test_every_task_has_a_file_with_its_reference():
    entries = read_entries()
    assert {entry.name for entry in entries} == {*NAMES}
    seconds = [entry.seconds for entry in entries]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# score: test/wer\n", "has no comment `# seconds: ...`"),
        ("# score: wer\n# seconds: 1\n", "`# score: wer` is not SPLIT/NAME"),
        ("# score: test/wer\n# seconds: soon\n", "`# seconds: soon` must be a positive number"),
        ("# score: test/wer\n# seconds: nan\n", "`# seconds: nan` must be a positive number"),
    ],
)
def test_file_without_a_comment_is_refused(text, message, tmp_path):
    others = "".join(f"# {key}: x\n" for key in ("reference", "source", "caveat", "measured"))
    file = tmp_path / "mine.yaml"
    file.write_text(text + others)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_entry(file)


def test_comments_go_on_in_indented_lines(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# @package _global_\n# Is a comment: read?\n# data: data.root=a/b\n# score: dev/loss\n"
        "# seconds: 5\n# reference: 1\n# source: none\n# caveat: one\n#   two\n\n#   three\n"
        "# measured: no\n"
    )
    entry = read_entry(file)
    assert (entry.caveat, entry.path, entry.split, entry.score) == ("one two", "a/b", "dev", "loss")


def entry(name, seconds, score="wer"):
    return Entry(name, "test", score, seconds, "1 %", "a book", "none", "2 %")


def test_quickest_tasks_that_fit_are_chosen():
    entries = [entry("a", 60), entry("b", 120), entry("c", 300)]
    assert [x.name for x in choose(entries, [], None)] == ["a", "b", "c"]
    assert [x.name for x in choose(entries, [], 3.0)] == ["a", "b"]
    assert [x.name for x in choose(entries, ["c", "a"], 6.0)] == ["a", "c"]
    with pytest.raises(UserError, match=r"less than the 5.0 minutes of c"):
        choose(entries, ["c"], 4.9)


def test_a_seed_without_a_score_is_named():
    scores = {0: Result(0.2, 0.1, 0.3, True), 4: "it diverged"}
    assert mean_over_seeds(scores) == "seed 4: it diverged"
    assert mean_over_seeds({None: "it diverged"}) == "it diverged"
    assert mean_over_seeds({7: scores[0]}) == scores[0]


def test_scores_have_their_direction():
    outcomes = {"a": Result(0.9, 0.8, 0.95, True), "b": Result(1.5, float("nan"), 0.0, False)}
    first, second = rows([entry("a", 1, "accuracy"), entry("b", 1, "loss")], outcomes)
    assert first[1:3] == ("accuracy, higher is better", "90.00 % (80.00 to 95.00)")
    assert second[1:3] == ("nats a token, lower is better", "1.500")
    assert describe(outcomes["b"]) == "1.500"
