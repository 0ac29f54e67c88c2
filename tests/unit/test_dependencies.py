"""The dependencies that pyproject.toml declares are those that famx imports, with bounds."""

import ast
import itertools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from famx.data import _audio
from famx.notation import UserError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# torch for a GPU installs it, torch for the CPU does without
BY_TORCH = {"triton"}
LOCKED_EXTRAS = ("dev", "english", "images", "lhotse", "pretrained", "slurm", "tune")


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_packages():
    """Returns the packages outside of the standard library that famx imports."""
    packages = set()
    for file in (ROOT / "famx").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            packages |= {module.partition(".")[0] for module in modules}
    return packages - sys.stdlib_module_names - {"famx"}


def test_everything_that_famx_imports_is_declared():
    # what an extra brings is imported where it is used
    lines = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    declared = {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines}
    distributions = packages_distributions()
    for package in imported_packages() - BY_TORCH:
        names = {normalised(name) for name in distributions.get(package, [package])}
        assert names & declared, package


def test_every_dependency_has_an_upper_bound():
    for line in PROJECT["dependencies"]:
        assert "<" in line, line


def test_lock_has_every_dependency_with_hashes_and_names_no_index():
    # a block for each version: NAME==VERSION ; MARKER, then its hashes
    text = (ROOT / "requirements.lock").read_text()
    locked = {}
    for block in re.findall(r"^\S+==.*(?:\n    .*)*", text, re.MULTILINE):
        name, version = re.match(r"(\S+)==(\S+)", block).groups()
        locked.setdefault(normalised(name), []).append(version)
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name
    assert "://" not in text
    assert "index" not in text
    # versions that pyproject.toml allows, of all that scripts/test installs
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *itertools.chain(*(extras[name] for name in LOCKED_EXTRAS))]
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == "famx":
            assert requirement.extras | {"dev"} == set(LOCKED_EXTRAS)
            continue
        versions = locked[normalised(requirement.name)]
        assert any(requirement.specifier.contains(version) for version in versions), line


@pytest.mark.parametrize("error", [OSError("libcudart.so.13: cannot open"), ImportError("no")])
def test_torchaudio_for_another_device_is_one_sentence(error, monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("torchaudio"):
                raise error

    for name in [name for name in sys.modules if name.startswith("torchaudio")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(UserError, match=r"torchaudio cannot be imported .*: install both"):
        getattr(_audio._filter_bank, "__wrapped__", _audio._filter_bank)(8000, 16000)
