"""Checkpoints are loaded exactly as they were saved, or refused."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from famx import seeding
from famx.notation import UserError
from famx.training import checkpoint

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
)


@given(tree=TREES)
def test_any_tree_is_loaded_as_it_was_saved(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder, 1, None, tree=tree)
    assert checkpoint.load(folder)["tree"] == tree


def test_tensors_keep_their_dtype_shape_and_sharing(tmp_path):
    tied = torch.randn(3, 4)
    model = {
        "a": tied,
        "b": tied,
        "half": torch.randn(2).bfloat16(),
        "scalar": torch.tensor(3),
        "transposed": tied.T,
    }
    checkpoint.save(tmp_path, 5, 0.5, model=model)
    loaded = checkpoint.load(tmp_path)
    for name, value in model.items():
        assert loaded["model"][name].dtype == value.dtype, name
        assert torch.equal(loaded["model"][name], value), name
    assert (loaded["step"], loaded["score"]) == (5, 0.5)


def test_the_two_newest_and_the_best_checkpoint_remain(tmp_path):
    for step, score in ((1, 0.5), (2, 0.1), (3, 0.4), (4, None), (5, 0.3)):
        checkpoint.save(tmp_path, step, score, tree=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4", "step-5"]
    assert checkpoint.load(tmp_path, "best")["tree"] == 2
    assert checkpoint.load(tmp_path, "last")["tree"] == 5


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, file, damage, caplog):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, None, model={"w": torch.full((8,), float(step))})
    path = tmp_path / "step-2" / file
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:middle])
    else:
        content[middle] ^= 1
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load(tmp_path)["step"] == 1
    assert "damaged" in caplog.text


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, None, model={"w": torch.ones(2)})

    def raise_disk_full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", raise_disk_full)
    with pytest.raises(UserError, match="disk is full"):
        checkpoint.save(tmp_path, 2, None, model={"w": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert checkpoint.load(tmp_path)["step"] == 1


def test_a_folder_without_checkpoint_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoint.load(tmp_path)


def test_random_generators_continue_from_their_saved_state():
    def random_numbers():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    state = seeding.rng_state()
    expected = random_numbers()
    seeding.set_rng_state(state)
    assert random_numbers() == expected


# content that is not as it was saved


def edit_state(path, edit):
    """Edits state.json of a checkpoint, and gives its manifest the right digest."""
    file = path / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(edit(state)))
    manifest = json.loads((path / "manifest.json").read_text())
    content = file.read_bytes()
    manifest[file.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


EDITS = {
    "a list": lambda state: [state],
    "no step": lambda state: {key: state[key] for key in state if key != "step"},
    "another step": lambda state: state | {"step": 7},
    "no tensor": lambda state: state | {"model": {"tensor": "nothing"}},
    "no type": lambda state: state | {"model": [1, 2]},
    "unknown type": lambda state: state | {"model": {"set": []}},
    "two types": lambda state: state | {"model": {"list": [], "dict": []}},
    "no pairs": lambda state: state | {"model": {"dict": [[1, 2, 3]]}},
    "list as key": lambda state: state | {"model": {"dict": [[[1], 2]]}},
    "a word as score": lambda state: state | {"score": "good"},
    "a NaN as score": lambda state: state | {"score": float("nan")},
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_checkpoint_with_right_digests_is_passed_over(edit, tmp_path, caplog):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, 0.5, model={"w": torch.ones(2)})
    edit_state(tmp_path / "step-2", EDITS[edit])
    for which in ("last", "best"):
        assert checkpoint.load(tmp_path, which)["step"] == 1
    assert "step-2 is damaged" in caplog.text
    edit_state(tmp_path / "step-1", EDITS[edit])
    with pytest.raises(UserError, match=r"holds no complete checkpoint: .* is damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("tree", ["model", "averaged", "optimizer"])
def test_checkpoint_with_a_nan_is_not_saved(tree, tmp_path):
    good = {"w": torch.ones(2), "mask": torch.full((2,), -torch.inf)}
    checkpoint.save(tmp_path, 1, None, **{tree: good})
    with pytest.raises(UserError, match=rf"step 2 is not saved, since {tree}\.w is not finite"):
        checkpoint.save(tmp_path, 2, None, **{tree: good | {"w": torch.tensor([1.0, torch.nan])}})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_checkpoint_with_a_nan_is_not_loaded(tmp_path, monkeypatch, caplog):
    checkpoint.save(tmp_path, 1, None, model={"w": torch.ones(2)})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "first_nan", lambda tensors: None)
        checkpoint.save(tmp_path, 2, None, model={"w": torch.full((2,), torch.nan)})
    assert checkpoint.load(tmp_path)["step"] == 1
    assert "model.w is not finite" in caplog.text
    assert "step-1 is used in its place" in caplog.text


def test_infinite_weight_is_not_saved():
    model = torch.nn.Linear(2, 2)
    checkpoint.require_finite_weights(model, 3)
    model.bias.data[1] = torch.inf
    with pytest.raises(UserError, match="step 3 is not saved, since the weight bias is not finite"):
        checkpoint.require_finite_weights(model, 3)


# what is removed and replaced


@pytest.mark.parametrize("file", ["state.json", "model.safetensors"])
def test_best_checkpoint_remains_whatever_is_damaged_in_others(file, tmp_path):
    for step, score in ((1, 0.5), (2, 0.1), (3, 0.4)):
        checkpoint.save(tmp_path, step, score, model={"w": torch.ones(2)})
    # a score that is better than the best, by one bit or with the weights destroyed
    damaged = tmp_path / "step-3" / file
    if file == "state.json":
        damaged.write_text(damaged.read_text().replace("0.4", "0.0"))
    else:
        damaged.write_bytes(b"")
    for step in (4, 5, 6):
        checkpoint.save(tmp_path, step, None, model={"w": torch.ones(2)})
    assert checkpoint.load(tmp_path, "best")["step"] == 2


def test_damaged_checkpoints_do_not_count_as_the_newest(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, None, model={"w": torch.ones(2)})
    (tmp_path / "step-3" / "state.json").unlink()
    checkpoint.save(tmp_path, 4, None, model={"w": torch.ones(2)})
    for name in ("step-3", "step-4"):
        (tmp_path / name / "manifest.json").unlink(missing_ok=True)
    assert checkpoint.load(tmp_path)["step"] == 2


class KilledError(BaseException):
    """Stands for the end of a process."""


def killing(function, call, calls):
    """Returns a function that ends the process before one of its calls."""

    def run(*arguments, **options):
        calls.append(function)
        if len(calls) == call:
            raise KilledError
        return function(*arguments, **options)

    return run


@pytest.mark.parametrize("call", range(1, 30))
def test_step_that_is_saved_again_is_complete_at_each_instant(call, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, 0.5, model={"w": torch.zeros(2)})
    calls = []
    with monkeypatch.context() as patch:
        for owner, name in (
            *((Path, name) for name in ("rename", "mkdir", "write_text")),
            *((checkpoint, name) for name in ("save_file", "_sync")),
            (checkpoint.shutil, "rmtree"),
            (os, "unlink"),
        ):
            patch.setattr(owner, name, killing(getattr(owner, name), call, calls))
        with contextlib.suppress(KilledError):
            checkpoint.save(tmp_path, 1, 0.5, model={"w": torch.ones(2)})
    saved = checkpoint.load(tmp_path)
    assert saved["model"]["w"].tolist() in ([0, 0], [1, 1])
    # the next process goes on, and leaves no remains
    checkpoint.save(tmp_path, 1, 0.5, model={"w": torch.full((2,), 2.0)})
    assert checkpoint.load(tmp_path)["model"]["w"].tolist() == [2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_file_beyond_the_limit_of_the_process_is_a_sentence(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"file too large.*there is no earlier one"):
            checkpoint.save(tmp_path, 1, None, model={"w": torch.ones(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
