"""Parts of installed packages, which their entry points register."""

import pytest
import yaml

from famx.registry import load, load_entry_points

SMALL = ("model.d_model=16", "model.n_heads=2", "model.n_layers=1")
TEXT = (
    *("task=lm", "data=text", "data.path=text.txt"),
    *("trainer.max_steps=1", "trainer.device=cpu", *SMALL),
)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns a function that installs a package with an entry point of the given value."""

    def run(value):
        folder = tmp_path / "site" / "own-1.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text("Name: own\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[famx.parts]\nmine = {value}\n")
        load.cache_clear()
        load_entry_points.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield run
    load.cache_clear()
    load_entry_points.cache_clear()


OFFSET_NORM = """\
import torch
from famx.registry import names, register

names("norm")  # the package may use the registry while it is loaded


@register("norm")
class Offset(torch.nn.LayerNorm):
    def __init__(self, d_model, *, offset: float = 0.0):
        super().__init__(d_model)
        self.offset = offset

    def forward(self, x):
        return super().forward(x) + self.offset
"""


@pytest.mark.slow
def test_part_of_an_installed_package_is_a_choice_in_every_command(command, install, tmp_path):
    (tmp_path / "installed_package").mkdir()
    (tmp_path / "installed_package" / "offset.py").write_text(OFFSET_NORM)
    install("installed_package.offset")
    finished = command("parts", "norm")
    assert finished.status == 0, finished.err
    assert "offset=0.0" in finished.out
    for words in (
        ("train", *TEXT, "norm=offset", "norm.offset=0.5", "hydra.run.dir=run"),
        ("evaluate", "run"),
        ("train", "resume=run", "trainer.max_steps=2"),
    ):
        finished = command(*words)
        assert finished.status == 0, finished.err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["famx_parts"] == []


@pytest.mark.parametrize(
    ("value", "reason"),
    {
        "nowhere.at_all": "ModuleNotFoundError: No module named 'nowhere'",
        "raises": "ZeroDivisionError: division by zero",
        "bare": "outside the package a part names its room",
    }.items(),
)
def test_broken_package_is_reported_with_its_entry_point(value, reason, command, install):
    install(value)
    for words in (("parts", "norm"), ("train", *TEXT)):
        finished = command(*words)
        assert finished.status == 2
        expected = f"the entry point famx.parts mine = {value} cannot be loaded: {reason}"
        assert expected in finished.sentence
