"""The commands of the pages for users, run in their order as a reader would, but shorter."""

import json
import re
import shlex
from pathlib import Path

import pytest
import transformers

from famx.check import main
from famx.data._example import write_corpus
from famx.frontend.wav2vec2 import Wav2Vec2
from famx.registry import PARTS

DOCS = Path(__file__).parents[2] / "docs"
SHORT = [
    *("trainer.max_steps=2", "trainer.device=cpu", "trainer.threads=1"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=2"),
]


def blocks(page, language):
    """Returns the blocks of code of a page."""
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def write_corpus_forms(folder):
    """Writes a corpus with manifests in the forms of .tsv, JSON lines and Kaldi."""
    for split, recordings in write_corpus(folder).items():
        (folder / split).mkdir()
        objects = [{"audio_filepath": row.file, "text": row.text} for row in recordings]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, objects)))
        for name, column in (("wav.scp", "file"), ("text", "text")):
            lines = [f"{row.file} {getattr(row, column)}" for row in recordings]
            (folder / split / name).write_text("\n".join(lines))


def write_encoder(folder):
    """Writes a small encoder with random weights, as the library saves it."""
    sizes = Wav2Vec2.example()["architecture"]
    config = transformers.Wav2Vec2Config(**sizes)
    transformers.Wav2Vec2Model(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["fine-tuning.md", "recordings.md", "sweeps.md", "text.md"])
def test_commands_of_a_page_run_in_their_order(page, command, tmp_path):
    (tmp_path / "large.txt").write_text("to be or not to be " * 200)
    (tmp_path / "small.txt").write_text("not to be or to be " * 99)
    write_corpus_forms(tmp_path / "corpus")
    write_encoder(tmp_path / "wav2vec2-base")
    (tmp_path / "sentences").mkdir()
    for split in ("train", "test"):
        lines = ["good\ta fine day", "bad\tnot so fine"] * 15
        (tmp_path / "sentences" / f"{split}.tsv").write_text("\n".join(lines))
    (tmp_path / "pairs").mkdir()
    pairs = [f"{i} dogs\t{i} Hunde\n" for i in range(40)]
    (tmp_path / "pairs" / "pairs.tsv").write_text("".join(pairs))
    (tmp_path / "lines.txt").write_text("2 dogs\n")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        python, dash_m, module, *words = shlex.split(line, comments=True)
        assert (python, dash_m) == ("python", "-m")
        name = module.removeprefix("famx.")
        # each run of a sweep is a process, which takes seconds to start
        words = [word.replace("seed=0,1", "seed=0") for word in words]
        if name == "train":
            words = [word.replace("freeze_steps=[300,100]", "freeze_steps=1") for word in words]
            words += [*SHORT, "task.vocab_size=0"] if "data=manifest" in words else SHORT
        finished = command(name, *words)
        assert finished.status == 0, f"{line}: {finished.err}"


def test_examples_in_plain_pytorch_run():
    (example,) = blocks("plain-pytorch.md", "python")
    exec(compile(example, "plain-pytorch.md", "exec"), {})


def test_schedule_of_the_page_satisfies_its_contracts_and_trains(command, tmp_path, monkeypatch):
    (example,) = [x for x in blocks("architecture.md", "python") if '@register("schedule")' in x]
    (tmp_path / "square_root.py").write_text(example)
    monkeypatch.setitem(PARTS, "schedule", dict(PARTS.get("schedule", {})))
    assert main(["square_root.py"]) == 0
    words = ("famx_parts=[square_root.py]", "schedule=square_root", "schedule.power=.7")
    trained = command("train", "task=lm", "data=text", "data.path=text.txt", *words, *SHORT)
    assert trained.status == 0, trained.err
    assert "schedule=square_root keeps what training requires (contracts checked: 1)" in trained.out


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "scripts" / "mkdocs.yml").read_text()
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f": {page.name}\n" in navigation
        assert page.name == "index.md" or f"({page.name})" in index
