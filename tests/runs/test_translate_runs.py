"""A run of task=translate as a user makes it: it learns, and is scored, compared and published."""

import io
import json
import random
import subprocess
import sys

import pytest

import famx
from famx.analysis.comparison import Comparison, notes
from famx.analysis.runs import group_by_setting, read_run
from famx.analysis.significance import differences
from famx.experiment.jobs import Job
from famx.experiment.tune import best_score, higher_is_better
from famx.notation import UserError
from famx.training import checkpoint
from famx.training.run_dir import RunDir

pytestmark = pytest.mark.slow

WORDS = dict(zip("0123", ("zero", "one", "two", "three"), strict=True))
PAIRS = ("data=pairs", "data.root=pairs")
TINY = (
    *("model.d_model=32", "model.n_heads=2", "model.n_layers=1", "layer.dropout=0"),
    *("loader.batch_tokens=300", "optim.lr=5e-3", "trainer.device=cpu", "trainer.threads=1"),
)
TRANSLATE = ("task=translate", "task.vocab_size=0", *TINY)
TRAIN = (*TRANSLATE, *PAIRS)
BEAM = ("decode=seq2seq_beam", "decode.ctc_weight=0", "decode.beam=3")


def in_words(digits):
    return " ".join(WORDS[digit] for digit in digits)


def write_pairs(folder):
    """Writes digits and their names; no pair is in two splits, except the first one of test."""
    rng = random.Random(0)
    sources = sorted({"".join(rng.choices("0123", k=rng.randint(2, 5))) for _ in range(700)})
    rng.shuffle(sources)
    folder.mkdir()
    splits = {"train": sources[60:], "dev": sources[:30], "test": [sources[60], *sources[30:60]]}
    for split, texts in splits.items():
        lines = [f"{text}\t{in_words(text)}\n" for text in texts]
        (folder / f"{split}.tsv").write_text("".join(lines))


@pytest.fixture
def trained(command, tmp_path):
    write_pairs(tmp_path / "pairs")
    words = ("trainer.max_steps=320", "trainer.eval_every=80", "hydra.run.dir=run")
    finished = command("train", *TRAIN, *words)
    assert finished.status == 0, finished.err
    assert "1 of the 31 examples of test are in train too; the first: " in finished.err
    return command


def test_run_learns_a_mapping_and_translates_new_texts(trained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    scores = json.loads((folder / "scores.test.json").read_text())
    assert scores["bleu"]["rate"] > 0.9 and scores["chrf"]["rate"] > 0.9
    assert scores["bleu"]["low"] <= scores["bleu"]["rate"] <= scores["bleu"]["high"]
    assert "|tok:13a|" in scores["bleu"]["signature"] and "|nc:6|" in scores["chrf"]["signature"]

    # the weights with the highest BLEU on dev are the best ones
    reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    on_dev = [report["dev/bleu"] for report in reports if "dev/bleu" in report]
    assert len(on_dev) == 4 and on_dev[0] < max(on_dev)
    assert json.loads((folder / "result.json").read_text())["score"] == max(on_dev)
    best = checkpoint.load(RunDir(folder).checkpoints, "best")
    assert -best["score"] == max(on_dev)

    # lines of a file and of standard input, in their order
    (tmp_path / "lines.txt").write_text("310\n\n22\n")
    expected = f"{in_words('310')}\n\n{in_words('22')}\n"
    assert trained("translate", "run", "lines.txt").out == expected
    assert trained("translate", "run", "lines.txt", *BEAM).out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"310\n\n22")))
    finished = trained("translate", "run")
    assert finished.out == expected and not finished.err
    (tmp_path / "lines.txt").write_text("1é\n")
    assert "have characters that no training text has: 'é'" in (
        trained("translate", "run", "lines.txt").err
    )

    # the same scores from the folder, and from an export
    finished = trained("evaluate", "run", *BEAM)
    assert finished.status == 0 and "BLEU" in finished.out
    assert "1 of the 31 examples of test are in the training of run" in finished.err
    # in a process of its own, since checks of types cannot be traced
    words = [sys.executable, "-m", "famx.export", "run", "--to", "published"]
    exported = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert exported.returncode == 0, exported.stderr
    card = (tmp_path / "published" / "README.md").read_text()
    assert "sacrebleu nrefs:1" in card and "It is the encoder alone" in card
    published = famx.load(tmp_path / "published")
    assert published.translate(["310", "22"]) == [in_words("310"), in_words("22")]
    assert published.translate("310") == [in_words("310")]
    assert published.translate([]) == []


def test_comparisons_and_tuning_know_that_higher_is_better(trained, tmp_path):
    folder = tmp_path / "run"
    run = read_run(folder, "test", None)
    assert (run.metric, run.higher_is_better, run.is_fraction) == ("bleu", True, True)
    runs = []
    for norm, change in (("layernorm", 0.0), ("rmsnorm", -0.3), ("other", 0.3)):
        for seed in (0, 1):
            errors = run.errors + change + seed * 1e-3
            settings = run.settings | {"norm": norm}
            runs.append(run._replace(errors=errors, seed=seed, settings=settings))
    settings = group_by_setting(runs)
    verdicts = [difference.verdict for difference in differences(settings)]
    assert verdicts == ["worse", "better"]
    sentences = " ".join(notes(Comparison("test", settings, differences(settings))))
    assert "from the first row, higher is better" in sentences
    # a search maximises BLEU, and minimises the loss
    config = RunDir(folder).load_config()
    assert higher_is_better(config, "dev/bleu") and not higher_is_better(config, "dev/loss")
    reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for metric, best in (("dev/bleu", max), ("dev/loss", min)):
        values = [report[metric] for report in reports if metric in report]
        assert best_score(Job(config, folder), metric) == best(values)


def test_mistakes_are_refused_in_one_sentence(command, tmp_path):
    write_pairs(tmp_path / "pairs")
    short = ("trainer.max_steps=1", "hydra.run.dir=run")
    assert command("train", *TRAIN, *short).status == 0
    lm = ("task=lm", "data=text", "data.path=text.txt", "data.block=8")
    assert command("train", *lm, *TINY, "trainer.max_steps=1", "hydra.run.dir=lm").status == 0
    (tmp_path / "latin").write_bytes("é\n".encode("latin-1"))
    for words, sentence in {
        ("translate", "lm"): "lm is a run of task=lm; a run of task=translate translates",
        ("translate", "run", "nowhere"): "there is no file nowhere",
        ("translate", "run", "latin"): "a line is not UTF-8",
        ("translate", "run", "decode=seq2seq_beam"): "decode.ctc_weight=0 decodes text alone",
        ("generate", "run", "--prompt", "1"): "task=lm writes text, and famx.translate translates",
        ("train", *TRANSLATE, "data=text"): "data=text has one token for each of its chars",
        ("train", *PAIRS, *TINY, "task=lm"): "pairs of texts are data for task=translate",
        ("train", *PAIRS, *TINY, "task=classify"): "pairs of texts are data for task=translate",
        ("train", *TRAIN, "data.train=x.tsv"): "there is no file",
    }.items():
        finished = command(*words)
        assert finished.status == 2, words
        assert sentence in finished.sentence
    with pytest.raises(UserError, match="cannot transcribe audio"):
        famx.load("run").transcribe([])
