"""Documents of strangers that no person would write: one sentence, status 2, within seconds."""

import pickle
import signal

import pytest
import yaml
from hydra._internal.core_plugins.basic_launcher import BasicLauncher

from famx.config.documents import load_yaml
from famx.registry import ROOMS, load, load_entry_points

TEXT = (
    *("task=lm", "data=text", "data.path=text.txt", "trainer.max_steps=1", "trainer.device=cpu"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=1"),
)
# a test that waits for ever is interrupted; the limit of a refusal is that of `command`
MAX_SECONDS = 200
BOMB = "a0: &a0 [x]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]" for i in range(1, 12)
)
DOCUMENTS = {
    "aliases": f"{BOMB}\nname: *a11\n",
    "merged aliases": "a0: &a0 {x: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join(9 * [f'*a{i - 1}'])}]}}" for i in range(1, 12)),
    "cycle": "name: &a [*a]\n",
    "digits": f"seed: {5000 * '9'}\n",
    "braces": f"name: {3000 * '{'}\n",
    "closed braces": f"name: {3000 * '['}{3000 * ']'}\n",
    "date": "name: 2001-99-99\n",
    "tag": "name: !!python/object/apply:os.mkdir [stolen]\n",
    "large": "name: " + 2**21 * "x",
}


@pytest.fixture(autouse=True)
def limit_of_time():
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(MAX_SECONDS)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_document_beyond_the_limits_is_refused(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_document_with_aliases_within_the_limits_is_read():
    shared = {"attention": {"name": "worm"}}
    value = {"layers": [shared, shared, shared], "seed": 10**30}
    assert load_yaml(yaml.safe_dump(value)) == value


@pytest.fixture
def run_config(command, tmp_path):
    """Returns the config file of a run."""
    finished = command("train", *TEXT, "hydra.run.dir=run")
    assert finished.status == 0, finished.err
    return tmp_path / "run" / "config.yaml"


@pytest.mark.slow
def test_document_as_config_of_a_run_or_as_an_experiment_is_refused(command, run_config, tmp_path):
    original = run_config.read_text()
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    for text in DOCUMENTS.values():
        signal.alarm(MAX_SECONDS)
        run_config.write_text(original.replace("name: transformer_adamw_text_lm\n", "") + text)
        (tmp_path / "own" / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}")
        for words in (
            ("train", "resume=run", "trainer.max_steps=2"),
            ("evaluate", "run"),
            ("train", *TEXT, "--config-dir", "own", "experiment=own"),
            ("train", "-m", *TEXT, "--config-dir", "own", "experiment=own"),
        ):
            finished = command(*words)
            assert finished.status == 2, finished.err
            assert ".yaml cannot be read" in finished.sentence
    assert not (tmp_path / "stolen").exists()


@pytest.mark.slow
def test_malformed_config_of_a_run_is_refused(command, run_config):
    config = yaml.safe_load(run_config.read_text())
    cases = [({"famx_parts": parts}, "famx_parts") for parts in (["x"], [{}], 3, [["a"]])]
    cases += [({room: {"x": 1}}, f"names no part of the room {room}") for room in ROOMS]
    for change, expected in cases:
        run_config.write_text(yaml.safe_dump(config | change))
        for words in (("train", "resume=run"), ("evaluate", "run"), ("compare", "run")):
            finished = command(*words)
            assert finished.status == 2, finished.err
            assert expected in finished.sentence
    for finetune, expected in ((5, "finetune in its config is no mapping"), ({"x": 1}, "x")):
        run_config.write_text(yaml.safe_dump(config | {"finetune": finetune}))
        finished = command("train", "resume=run", "trust_edits=true")
        assert finished.status == 2, finished.err
        assert expected in finished.sentence


WORDS = (f"seed={5000 * '9'}", f"name={3000 * '{'}", f"optim.betas={3000 * '['}{3000 * ']'}")


PART_WORDS = [f"famx_parts={word.partition('=')[2]}" for word in WORDS]


@pytest.mark.parametrize("word", [*WORDS, *PART_WORDS], ids=range(6))
def test_word_that_no_person_would_type_is_refused(word, command):
    finished = command("train", *TEXT, word)
    assert finished.status == 2
    assert "cannot be read" in finished.sentence or "must have at most 220" in finished.sentence
    finished = command("train", "-m", *TEXT, word)
    assert finished.status == 2


# code that ends the process

EXITS = "import sys\nsys.exit(0)\n"
EXITS_LATER = """\
import sys

from torch import nn

from famx.registry import register


@register("norm")
class Exits(nn.Module):
    def __init__(self, d_model):
        sys.exit(0)
"""


@pytest.mark.parametrize("code", [EXITS, EXITS_LATER])
def test_part_that_ends_the_process_is_an_error(code, command, tmp_path):
    (tmp_path / "exits.py").write_text(code)
    finished = command("train", *TEXT, "famx_parts=[exits.py]", "norm=exits")
    assert finished.status == 2
    assert "exit" in finished.sentence


def test_entry_point_that_ends_the_process_is_an_error(command, tmp_path, monkeypatch):
    folder = tmp_path / "site" / "own-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: own\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[famx.parts]\nmine = exits\n")
    (tmp_path / "site" / "exits.py").write_text(EXITS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    load.cache_clear()
    load_entry_points.cache_clear()
    finished = command("parts", "norm")
    assert finished.status == 2
    assert "the entry point famx.parts mine = exits cannot be loaded: SystemExit: 0" in finished.err
    monkeypatch.undo()
    load.cache_clear()
    load_entry_points.cache_clear()


def test_refused_run_of_a_launcher_in_another_process_is_in_the_status(command, monkeypatch):
    launch = BasicLauncher.launch

    def launch_elsewhere(self, overrides, first):
        # another process has a copy of the job, and returns copies of its results
        self.task_function = pickle.loads(pickle.dumps(self.task_function))
        return launch(self, overrides, first)

    monkeypatch.setattr(BasicLauncher, "launch", launch_elsewhere)
    finished = command("train", "-m", *TEXT, "probe=loud,bad", "hydra.sweep.dir=sweep")
    assert finished.status == 2
    assert "probe=bad is refused: probe=bad: no such level" in finished.err
