"""The cache of decoded recordings."""

import itertools
import pickle
import shutil

import numpy as np
import pytest
import soundfile
import torch

from famx.data import _recordings
from famx.data._cache import SampleCache
from famx.data._example import tone, write_corpus
from famx.data.hub import Hub
from famx.data.manifest import Manifest
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, suffix=".flac")
    return folder


@pytest.fixture
def decoded(monkeypatch, tmp_path):
    """A function that returns the names of all recordings that any process has decoded."""
    log = tmp_path / "decoded"
    log.touch()
    read_audio = _recordings.read_audio

    def read_and_log(file, name, *part):
        with log.open("a") as stream:
            stream.write(name + "\n")
        return read_audio(file, name, *part)

    monkeypatch.setattr(_recordings, "read_audio", read_and_log)
    return lambda: log.read_text().split()


def read_epochs(dataset, n_epochs, **options):
    """Returns all batches of the first epochs."""
    config = LoaderConfig(batch_seconds=2.0, **options)
    loader = Loader(dataset, dataset.build_tokenizer(), 0, config)
    steps = itertools.takewhile(lambda step: step[0] < n_epochs, loader.train_batches())
    return [batch for _, _, batch in steps]


def test_samples_are_the_stored_ones():
    cache = SampleCache([3, 5, 2], n_bytes=100)
    assert cache.get(1) is None
    cache.put(1, np.array([1, -2, 3, 4], np.int16))
    cache.put(2, np.array([7, 8], np.int16))
    assert cache.get(0) is None
    np.testing.assert_array_equal(cache.get(1), [1, -2, 3, 4])
    np.testing.assert_array_equal(cache.get(2), [7, 8])


def test_limit_of_memory_is_respected():
    # 16-bit samples: the first two recordings need 16 bytes
    cache = SampleCache([3, 5, 2], n_bytes=17)
    for index, size in enumerate([3, 5, 2]):
        cache.put(index, np.ones(size, np.int16))
    assert [cache.get(index) is not None for index in range(3)] == [True, True, False]
    empty = SampleCache([3], n_bytes=0)
    empty.put(0, np.ones(3, np.int16))
    assert empty.get(0) is None


def test_recording_longer_than_stated_is_not_stored():
    cache = SampleCache([3, 5], n_bytes=100)
    cache.put(0, np.ones(4, np.int16))
    assert cache.get(0) is None
    assert cache.get(1) is None


def test_pickled_cache_is_empty():
    cache = SampleCache([3, 5], n_bytes=100)
    cache.put(0, np.ones(3, np.int16))
    restored = pickle.loads(pickle.dumps(cache))
    assert restored.get(0) is None
    restored.put(0, np.zeros(3, np.int16))
    np.testing.assert_array_equal(cache.get(0), [1, 1, 1])


@pytest.mark.parametrize("join", [(), (1, 2)])
def test_cache_changes_no_bit(corpus, join):
    expected = read_epochs(Manifest("train", 0, root=str(corpus), join=join), 3, cache_gb=0.0)
    actual = read_epochs(Manifest("train", 0, root=str(corpus), join=join), 3)
    assert len(expected) > 6
    for first, second in zip(expected, actual, strict=True):
        assert first.ids == second.ids
        for name, tensor in first.tensors.items():
            assert torch.equal(tensor, getattr(second, name))


@pytest.mark.parametrize("workers", [0, 2])
def test_second_epoch_decodes_nothing(corpus, decoded, workers):
    dataset = Manifest("train", 0, root=str(corpus))
    read_epochs(dataset, 1, workers=workers)
    # workers read ahead, into the next epoch, and two may decode a recording at the same time
    names = decoded()
    assert set(names) == set(dataset.ids)
    if workers == 0:
        assert len(names) == len(dataset)
    for index in range(len(dataset)):
        dataset[index]
    assert decoded() == names


def test_recordings_of_a_table_are_decoded_once(decoded, tmp_path):
    dataset = Hub("train", **Hub.example(tmp_path))
    read_epochs(dataset, 3)
    assert len(decoded()) == len(dataset)


def test_recordings_without_memory_are_decoded_in_each_epoch(corpus, decoded):
    dataset = Manifest("train", 0, root=str(corpus))
    read_epochs(dataset, 3, cache_gb=0.0)
    # and the first batch of the next epoch
    assert len(decoded()) > 3 * len(dataset)


def test_changed_file_is_decoded_again(corpus, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    before = read_epochs(Manifest("train", 0, root=str(folder)), 1, speed=[1.0])
    soundfile.write(folder / "anna3.flac", tone(0.5, hertz=123.0), 16_000)
    after = read_epochs(Manifest("train", 0, root=str(folder)), 1, speed=[1.0])

    def samples(batches):
        for batch in batches:
            for name, row, length in zip(batch.ids, batch.inputs, batch.lengths, strict=True):
                if name == "anna3.flac":
                    return row[:length]
        raise AssertionError

    assert len(samples(before)) != len(samples(after))


def test_default_memory_is_at_most_four_gigabytes_and_a_quarter_of_the_machine(monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert LoaderConfig().cache_bytes() == 2**28
    # shared by the processes of torchrun
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert LoaderConfig().cache_bytes() == 2**27
    pages["SC_PHYS_PAGES"] = 2**30
    assert LoaderConfig().cache_bytes() == 4 * 10**9
    assert LoaderConfig(cache_gb=0.5).cache_bytes() == 5 * 10**8
