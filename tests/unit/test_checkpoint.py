"""Checkpoints are loaded exactly as they were saved, or refused."""

import errno
import logging
import random

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
