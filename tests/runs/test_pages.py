"""The commands of the pages for users, run in their order as a reader would, but shorter."""

import re
import shlex
from pathlib import Path

import pytest

from famx.data._example import write_corpus

DOCS = Path(__file__).parents[2] / "docs"
SHORT = [
    *("trainer.max_steps=2", "trainer.device=cpu", "trainer.threads=1"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=2"),
]


def blocks(page, language):
    """Returns the blocks of code of a page."""
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["fine-tuning.md", "recordings.md", "sweeps.md"])
def test_commands_of_a_page_run_in_their_order(page, command, tmp_path):
    (tmp_path / "large.txt").write_text("to be or not to be " * 200)
    (tmp_path / "small.txt").write_text("not to be or to be " * 99)
    write_corpus(tmp_path / "corpus")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        python, dash_m, module, *words = shlex.split(line, comments=True)
        assert (python, dash_m) == ("python", "-m")
        name = module.removeprefix("famx.")
        if name == "train":
            words += [*SHORT, "task.vocab_size=0"] if "data=manifest" in words else SHORT
        finished = command(name, *words)
        assert finished.status == 0, f"{line}: {finished.err}"


def test_examples_in_plain_pytorch_run():
    (example,) = blocks("plain-pytorch.md", "python")
    exec(compile(example, "plain-pytorch.md", "exec"), {})


def test_every_page_is_in_the_navigation():
    navigation = (DOCS.parent / "scripts" / "mkdocs.yml").read_text()
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f": {page.name}\n" in navigation
        assert page.name == "index.md" or f"({page.name})" in index
