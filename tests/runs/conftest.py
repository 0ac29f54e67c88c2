"""A corpus of tones, and command lines of famx that are run in this process."""

import functools
import importlib
import sys
import time
from typing import NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra
from tones import write_tones

from famx.config.command import run_command
from famx.registry import PARTS

# imported before a command is timed
for module in ("famx.train", "famx.inference", "datasets", "optuna", "torch._dynamo"):
    importlib.import_module(module)

# within which a mistake or a hostile input is refused
REFUSAL_SECONDS = 5.0
# files of parts, most of which cannot be used
PART_FILES = {
    "raises.py": "1 / 0",
    "breaks.py": "def (",
    "bare.py": "from famx.registry import register\n\n\n@register\nclass Part: ...\n",
    "twice.py": """\
from famx.registry import register

@register('norm')
class A: ...

@register('norm')
class B: ...
""",
    "part.txt": "",
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Returns the folder of a corpus of tones, which no test changes."""
    folder = tmp_path_factory.mktemp("tones")
    write_tones(folder)
    return folder


class Finished(NamedTuple):
    """The exit status of a command, and its output."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The only line of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Returns a function that runs `command("train", "seed=1", ...)` in the folder `tmp_path`."""

    def run(name: str, *words: object) -> Finished:
        module = importlib.import_module(f"famx.{name}")
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        main = functools.partial(module.show, sys.argv[1:]) if name == "parts" else module.main
        GlobalHydra.instance().clear()
        capsys.readouterr()
        started = time.process_time()
        with pytest.raises(SystemExit) as exit_info:
            run_command(main)
        # processor time, since the machine may be busy
        seconds = time.process_time() - started
        if exit_info.value.code == 2:
            assert seconds < REFUSAL_SECONDS, f"{words} is refused after {seconds:.1f} s"
        return Finished(exit_info.value.code, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    # some files register parts
    monkeypatch.setitem(PARTS, "norm", dict(PARTS["norm"]))
    (tmp_path / "text.txt").write_text("to be or not to be " * 99)
    for name, text in PART_FILES.items():
        (tmp_path / name).write_text(text)
    return run
