"""Schemas, files, and the rules that turn a command line into Hydra's."""

import enum
import errno
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf

from famx import files
from famx.config.command import (
    find_override,
    format_command,
    format_tensorboard,
    import_user_parts,
)
from famx.config.errors import RENAMED, refuse_renamed
from famx.config.schema import (
    complete_choice,
    fill_defaults,
    flatten,
    root_defaults,
    schema,
    section_schema,
    to_plain,
)
from famx.config.sections import ModelConfig
from famx.config.words import as_choice, hydra_words, name_from_parts, split_words
from famx.notation import UserError
from famx.registry import CONTEXT, PARTS, ROOMS, hyperparameters, names
from famx.validate import COUNT, FACTOR, ConfigSection, check_number

# schemas


def test_schema_of_a_part_has_its_name_and_hyperparameters_but_no_context():
    for room in ROOMS:
        for name in names(room):
            fields = schema(PARTS[room][name], name).__dataclass_fields__
            assert list(fields) == ["name", *hyperparameters(PARTS[room][name])]
            assert not CONTEXT.intersection(fields)


@dataclass
class InnerConfig:
    depth: int = 1


@dataclass
class ExampleConfig(ConfigSection):
    kind: Literal["one", "two"] = "one"
    count: Annotated[int | None, COUNT] = None
    factors: Annotated[list[float], FACTOR] = field(default_factory=lambda: [1.0])
    pair: tuple[float, float] = (0.0, 1.0)
    inner: InnerConfig = field(default_factory=InnerConfig)
    anything: int | list[str] = 1


def test_section_is_checked_by_its_annotations():
    checked = section_schema(ExampleConfig)
    values = fill_defaults(checked, {"kind": "two", "inner": {"depth": 3}}, "example")
    assert values == {
        "kind": "two",
        "count": None,
        "factors": [1.0],
        "pair": [0.0, 1.0],
        "inner": {"depth": 3},
        "anything": 1,
    }
    for wrong in ({"kind": "three"}, {"count": "many"}, {"inner": {"depht": 3}}, {"factors": 3}):
        (key,) = wrong
        with pytest.raises(UserError, match=rf"example\.{key}"):
            fill_defaults(checked, wrong, "example")


def test_choice_from_words_is_a_word_in_an_interpolation():
    @dataclass
    class NamedConfig:
        kind: Literal["one", "two"] = "one"
        name: str = "run_${kind}"

    config = OmegaConf.structured(section_schema(NamedConfig))
    assert isinstance(config.kind, enum.Enum)
    assert to_plain(config) == {"kind": "one", "name": "run_one"}


def test_numbers_of_a_section_obey_their_rules():
    assert ExampleConfig(count=2).count == 2
    with pytest.raises(UserError, match=r"example\.count=0 must be at least 1"):
        ExampleConfig(count=0)
    with pytest.raises(UserError, match=r"example\.factors=\[1\.0, 9\.0\] must be between 0\.2"):
        ExampleConfig(factors=[1.0, 9.0])
    with pytest.raises(UserError, match=r"model\.d_model=0 must be at least 1"):
        ModelConfig(d_model=0)
    with pytest.raises(UserError, match=r"model\.n_layers=9+ must be at least 1 and below"):
        ModelConfig(n_layers=10**400 - 1)


def test_numbers_inside_lists_and_mappings_are_checked():
    check_number("key", {"a": [1, 2], "b": {"c": "word"}, "d": None})
    with pytest.raises(UserError, match=r"key\.b\.c=nan must be finite"):
        check_number("key", {"a": 1, "b": {"c": math.nan}})


def test_choice_is_completed_and_checked():
    assert complete_choice("norm", {"name": "layernorm"}) == {"name": "layernorm", "eps": 1e-5}
    with pytest.raises(UserError, match=r"norm=layernorm: norm\.eps: it must be a number, got x"):
        complete_choice("norm", {"name": "layernorm", "eps": "x"})


def test_missing_value_is_refused():
    with pytest.raises(UserError, match="lr: Missing mandatory value"):
        to_plain(OmegaConf.create({"optim": {"lr": "???"}}))


def test_options_of_a_section_are_listed_without_names():
    section = {"name": "x", "a": {"b": 1, "name": "y"}, "c": {}, "d": [1]}
    expected = [("model.a.b", 1), ("model.c", {}), ("model.d", [1])]
    assert list(flatten(section, "model")) == expected


# options of famx 0.1


def test_config_with_options_of_famx_0_1_is_refused_with_all_new_names():
    config = {
        "watch": "light",
        "kinds": {},
        "task": {"name": "ctc", "units": 96},
        "trainer": {"clip": 0.1},
        "loader": {"batch": 30},
        "momentum": {"name": "usual"},
        "model": {"draw": {"usual": {}, "space": {"norm": "usual"}}},
    }
    with pytest.raises(UserError) as caught:
        refuse_renamed(config, "run/config.yaml")
    message = str(caught.value)
    assert message.startswith("run/config.yaml was written for famx 0.1: watch is now probe, ")
    for option, new_name in RENAMED.items():
        assert f"{option} is now {new_name}" in message
    for option in ("momentum", "model.draw.space.norm"):
        assert f"{option}=usual is now {option}=default" in message


def test_config_of_today_is_not_refused():
    refuse_renamed(root_defaults(), "")
    refuse_renamed({"task": {"name": "ctc", "vocab_size": 96}, "model": {"draw": None}}, "")
    refuse_renamed({"task": 3, "model": []}, "")


def test_hyperparameter_of_a_users_part_may_have_an_old_name(monkeypatch):
    class UserTask:
        def __init__(self, *, units: int = 3): ...

    monkeypatch.setitem(PARTS["task"], "own", UserTask)
    refuse_renamed({"task": {"name": "own", "units": 3}}, "")


# the command line


def test_options_and_overrides_may_be_in_any_order():
    options, overrides = split_words(["seed=0,1", "--cfg", "job", "optim=fam", "-cd", ".", "~x"])
    assert options == ["--cfg", "job", "--config-dir", "."]
    assert overrides == ["seed=0,1", "optim=fam", "~x"]
    with pytest.raises(UserError, match="unrecognized arguments: --multi"):
        split_words(["--multi", "seed=0,1"])


def test_last_override_counts():
    assert find_override("seed", ["seed=1", "+seed=2", "seeds=3", "seed"]) == "2"
    assert find_override("seed", ["trainer.seed=1"]) is None


def test_added_key_becomes_one_that_is_set():
    words = hydra_words([], ["+optim.lr=1", "++a=2", "+model.draw.space.norm=all", "+hydra.x=1"])
    assert words == ["optim.lr=1", "a=2", "+model.draw.space.norm=all", "+hydra.x=1"]


def test_run_is_named_by_parts_in_the_order_of_the_rooms():
    words = ["optim=fam", "norm=rmsnorm", "attention=cosine", "momentum=default"]
    assert name_from_parts(words) == ["name='${model.name}_${optim.name}_cosine_rmsnorm'"]
    assert name_from_parts(["optim=fam"]) == []
    assert name_from_parts([*words, "name=mine"]) == []


@pytest.mark.parametrize(
    ("word", "expected"),
    {
        "optim.n_bands=4": "optim.n_bands=choice(4)",
        "loader.speed=[1,2]": "loader.speed=choice([1,2])",
        "seed=0,1": "seed=0,1",
        "seed=range(3)": "seed=range(3)",
        "trainer.patience=null": "trainer.patience=null",
        "experiment=digits": "experiment=digits",
        "hydra.run.dir=x": "hydra.run.dir=x",
        "~model.draw.space.norm": "~model.draw.space.norm",
        "optim.lr=[": "optim.lr=[",
    }.items(),
)
def test_override_in_a_sweep_becomes_a_sweep_of_one_value(word, expected):
    assert as_choice(word) == expected


def test_runs_of_a_sweep_are_named_by_what_is_swept():
    words = ["optim=fam,adamw", "seed=0,1", "attention=cosine"]
    *overrides, name, _ = hydra_words(["--multirun"], words)
    assert overrides == ["optim=fam,adamw", "seed=0,1", "attention=choice(cosine)"]
    expected = "optim=${folder_name:${optim.name},115},seed=${folder_name:${seed},116}"
    assert name == f"hydra.sweep.subdir='{expected}'"


def test_sweep_of_an_experiment_is_in_the_names_unless_replaced():
    words = ["experiment=fam_against_its_controls", "seed=3"]
    *_, name, _ = hydra_words(["--multirun"], words)
    assert "task=" in name
    assert "momentum=" in name
    assert "seed=" not in name


def test_folder_of_a_sweep_depends_on_what_is_swept_and_on_what_is_fixed():
    def folder(*words):
        return hydra_words(["--multirun"], words)[-1]

    expected = folder("seed=0,1", "optim=fam")
    assert expected.startswith("hydra.sweep.dir='outputs/sweep_seed_")
    # more values, another order, and options that cannot change a result
    assert folder("optim=fam", "seed=0,1,2", "loader.workers=2", "sweep.jobs=2") == expected
    assert folder("seed=0,1", "optim=fam,adamw") == folder("optim=adamw,fam", "seed=0,1")
    assert folder("seed=0,1", "optim=adamw") != expected
    assert folder("seed=0,1", "optim=fam", "data.root=x") != expected
    # the folder of the command line
    words = hydra_words(["--multirun"], ["seed=0,1", "hydra.sweep.dir=mine"])
    assert [word for word in words if "sweep.dir" in word] == ["hydra.sweep.dir=mine"]


def test_other_processes_of_a_run_use_another_folder(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert hydra_words([], ["seed=1"])[1].startswith("hydra.run.dir=")
    monkeypatch.setenv("RANK", "0")
    assert hydra_words([], ["seed=1"]) == ["seed=1"]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Returns a folder of programs, among them this Python, which is the only one on the path."""
    for name in ("python", "tensorboard"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    return tmp_path


def test_printed_command_names_this_python_where_the_shell_finds_another(programs, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train"])
    assert format_command("evaluate", "run") == "python -m famx.evaluate run"
    assert format_tensorboard("a b") == "tensorboard --logdir 'a b'"
    # another Python comes first, or there is none
    (programs / "other").mkdir()
    (programs / "other" / "python").symlink_to(programs / "python")
    for path in (programs / "other", programs / "nowhere"):
        monkeypatch.setenv("PATH", str(path))
        assert format_command("evaluate", "run") == f"{programs}/python -m famx.evaluate run"
        assert format_tensorboard("b") == f"{programs}/python -m tensorboard.main --logdir b"
    # a link to the environment is the same environment
    (programs / "link").symlink_to(programs)
    monkeypatch.setenv("PATH", str(programs / "link"))
    assert format_command("evaluate", "run") == "python -m famx.evaluate run"


def test_printed_command_repeats_the_users_parts(monkeypatch, programs):
    monkeypatch.setattr("sys.argv", ["train", "famx_parts=[a b.py]", "seed=1"])
    assert format_command("evaluate", "run") == (
        f"python -m famx.evaluate run 'famx_parts=[{os.getcwd()}/a b.py]'"
    )
    monkeypatch.setattr("sys.argv", ["train", "seed=1"])
    assert format_command("evaluate", "run") == "python -m famx.evaluate run"


def test_run_needs_the_same_files_of_parts(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from famx.registry import register\n@register('norm')\nclass Own: ...\n")
    words = [f"famx_parts=[{file}]"]
    try:
        digests = import_user_parts(words)
        assert [part["file"] for part in digests] == ["own.py"]
        assert import_user_parts(words, "run", digests) == digests
        with pytest.raises(UserError, match=r"own\.py, which is missing: pass famx_parts=\[own"):
            import_user_parts([], "run", digests)
        file.write_text(file.read_text() + "\n")
        with pytest.raises(UserError, match=r"own\.py, which has changed since"):
            import_user_parts(words, "run", digests)
    finally:
        PARTS["norm"].pop("own", None)


# files


def test_file_is_unchanged_when_the_disk_is_full(tmp_path, monkeypatch):
    def refuse(file: Path, text: str, **options: str) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "scores.json").write_text("old")
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UserError, match=r"scores\.json cannot be written: No space left"):
        files.write_atomic(tmp_path / "scores.json", "new")
    assert (tmp_path / "scores.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_other_errors_of_the_disk_are_not_the_users():
    with pytest.raises(FileNotFoundError), files.report_os_errors():
        Path("/nowhere/at/all").read_text()


def test_image_needs_a_png_name_in_a_folder(tmp_path):
    assert files.check_png_path(tmp_path / "a.png") == tmp_path / "a.png"
    for path in (tmp_path / "a.jpg", tmp_path / "nowhere" / "a.png", tmp_path):
        with pytest.raises(UserError, match="--png"):
            files.check_png_path(path)
