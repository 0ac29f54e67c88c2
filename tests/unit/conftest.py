"""Corpora for tests of data sets, and Triton's interpreter for kernels where there is no GPU."""

import importlib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import famx.kernels
from famx.data._example import Recording, write_corpus
from famx.data.hub import Hub


@pytest.fixture
def rounding_of_a_gpu(monkeypatch):
    """Lets the interpreter round to the nearest bfloat16 instead of towards 0."""
    tl = pytest.importorskip("triton.language", reason="needs Triton")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._convert_float

    def convert_float(values, source, target, rounding_mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding_mode)
        rounded = torch.tensor(values).bfloat16()
        return rounded.view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)


@pytest.fixture
def with_kernels(monkeypatch):
    """Takes the way of the kernels on this device."""
    monkeypatch.setattr(famx.kernels, "available", lambda device: True)


class Corpus(NamedTuple):
    """A folder, and its recordings by split."""

    folder: Path
    recordings: dict[str, list[Recording]]


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory):
    """Replaces the cache of Hugging Face's data sets."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Returns a folder of recordings, and what is in it."""
    folder = tmp_path_factory.mktemp("corpus")
    return Corpus(folder, write_corpus(folder))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a folder of `save_to_disk`, as the options of Hub."""
    return Hub.example(tmp_path_factory.mktemp("saved"))
