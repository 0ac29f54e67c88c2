"""Streams of parquet files: the rows of a window, what is read for it, broken connections."""

import itertools
import logging

import fsspec
import numpy as np
import pyarrow
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from famx.data import _parquet_stream
from famx.data._parquet_stream import ParquetStream
from famx.data.hub import Hub
from famx.data.hub_stream import HubStream
from famx.notation import StreamError, UserError
from famx.training import loader_config
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig

pytestmark = pytest.mark.usefixtures("hub_cache")


class Flaky(LocalFileSystem):
    """Local files whose first connections break, as addresses of the form flaky:///PATH."""

    protocol = "flaky"
    n_failures = 0
    opened: list[str]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("flaky://"))

    def _open(self, path, mode="rb", **options):
        Flaky.opened.append(path)
        if Flaky.n_failures > 0:
            Flaky.n_failures -= 1
            raise ConnectionError("the other side has closed the connection")
        return super()._open(path, mode, **options)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def flaky(monkeypatch):
    monkeypatch.setattr(Flaky, "n_failures", 0)
    monkeypatch.setattr(Flaky, "opened", [], raising=False)
    monkeypatch.setattr(_parquet_stream, "RETRY_DELAYS", (0.0, 0.0, 0.0))


def write_numbers(folder, sizes, group_size, protocol=""):
    """Writes files of consecutive numbers, and returns their addresses."""
    start = 0
    files = []
    for number, size in enumerate(sizes):
        table = pyarrow.table({"n": np.arange(start, start + size), "other": ["x"] * size})
        file = folder / f"{number:03d}.parquet"
        parquet.write_table(table, file, row_group_size=group_size)
        files.append(f"{protocol}{file}")
        start += size
    return files


def numbers(stream, window):
    read = stream.window(window)
    # the numbers of the rows are those that the files hold
    assert read.table["n"][:] == read.rows
    return read.rows


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=25)
def test_each_pass_has_every_row_once(tmp_path_factory, sizes, group_size, n_rows, seed):
    files = write_numbers(tmp_path_factory.mktemp("numbers"), sizes, group_size)
    stream = ParquetStream("a stream", files, ["n"], seed, n_rows)
    orders = []
    for number_of_pass in range(2):
        start = number_of_pass * stream.n_windows
        windows = [numbers(stream, start + index) for index in range(stream.n_windows)]
        assert all(windows)
        order = list(itertools.chain(*windows))
        assert sorted(order) == list(range(sum(sizes)))
        orders.append(order)
    # read in another order, by another process
    again = ParquetStream("a stream", files, ["n"], seed, n_rows)
    assert numbers(again, 2 * stream.n_windows - 1) == windows[-1]
    assert stream.all_rows().rows == sorted(orders[0])


def test_windows_have_about_as_many_rows_as_desired_from_all_files(tmp_path):
    files = write_numbers(tmp_path, [200] * 10, 10)
    stream = ParquetStream("a stream", files, ["n"], 0, 100)
    windows = [numbers(stream, index) for index in range(20)]
    assert stream.n_windows == 20
    assert {len(window) for window in windows} == {100}
    assert all(len({row // 200 for row in window}) > 3 for window in windows)
    # another order in the next pass and under another seed
    assert numbers(stream, 20) != windows[0]
    assert numbers(ParquetStream("a stream", files, ["n"], 1, 100), 0) != windows[0]


def test_a_window_reads_no_other_part_of_the_files(tmp_path):
    files = write_numbers(tmp_path, [40] * 6, 10, "flaky://")
    stream = ParquetStream("a stream", files, ["n"], 0, 20)
    assert len(Flaky.opened) == 6
    # two row groups of 24, also to go on with a late window
    stream.window(11 + 5 * stream.n_windows)
    assert len(Flaky.opened) == 6 + 2
    assert stream.first_rows(15, "n")["n"][:] == list(range(20))
    assert len(Flaky.opened) == 6 + 2 + 2


@pytest.mark.parametrize("n_failures", [1, 3])
def test_a_connection_that_breaks_is_made_again(tmp_path, n_failures, caplog):
    files = write_numbers(tmp_path, [40], 40, "flaky://")
    stream = ParquetStream("a stream", files, ["n"], 0, 40)
    Flaky.n_failures = n_failures
    assert len(numbers(stream, 0)) == 40
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == n_failures
    assert "000.parquet cannot be read (ConnectionError: the other side" in warnings[0]


def test_a_connection_that_stays_broken_is_named(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    files = write_numbers(tmp_path, [40], 40, "flaky://")
    stream = ParquetStream("data.path=x", files, ["n"], 0, 40)
    Flaky.n_failures = 4
    message = r"data\.path=x breaks: flaky://.*000\.parquet could not be read in 4 attempts \(Conn"
    with pytest.raises(StreamError, match=message):
        stream.window(0)
    # later it is there again
    assert len(numbers(stream, 0)) == 40


def test_attempts_are_further_apart_each_time(monkeypatch):
    monkeypatch.undo()
    assert list(_parquet_stream.RETRY_DELAYS) == sorted(set(_parquet_stream.RETRY_DELAYS))
    assert len(_parquet_stream.RETRY_DELAYS) == 3


def test_files_that_are_no_parquet_are_damaged(tmp_path):
    [file] = write_numbers(tmp_path, [40], 10)
    content = (tmp_path / "000.parquet").read_bytes()
    (tmp_path / "000.parquet").write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"000\.parquet is damaged: ArrowInvalid"):
        ParquetStream("a stream", [file], ["n"], 0, 40)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Returns the options that read a corpus of parquet files."""
    return HubStream.example(tmp_path_factory.mktemp("stream"))


def test_recordings_are_those_of_the_files(options, saved):
    for split in ("train", "dev"):
        expected = Hub(split, **saved)
        dataset = HubStream(split, 0, **options)
        n_windows = dataset._stream.n_windows if split == "train" else 1
        assert (n_windows > 1) == (split == "train")
        by_name = dict(zip(expected.ids, range(len(expected)), strict=True))
        names = []
        for epoch in range(n_windows):
            view = dataset.at(epoch)
            names += view.ids
            for index, name in enumerate(view.ids):
                assert torch.equal(view[index].signal, expected[by_name[name]].signal)
                assert view.texts[index] == expected.texts[by_name[name]]
                assert view.speakers[index] == expected.speakers[by_name[name]]
        assert sorted(names) == sorted(expected.ids)
    assert dataset.n_streamed == 0


def test_masks_are_those_of_the_stream_and_not_of_a_window(options, saved, monkeypatch):
    dataset = HubStream("train", 0, **options)
    total = Hub("train", **saved).total_length
    # windows have similar lengths, and the corpus is several times as long as one
    assert dataset.total_length == pytest.approx(total, rel=0.5)
    monkeypatch.setattr(loader_config, "SMALL_CORPUS", (sum(dataset.lengths) + total) / 2)
    loader = Loader(dataset, dataset.build_tokenizer(), 0, LoaderConfig())
    assert loader.masks == loader_config.MASKS
    assert loader._augmentation(1).spans.shape[1] == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_reads_only_the_window_that_it_continues(options, workers):
    def batches(epoch, position, n_batches):
        dataset = HubStream("train", 0, **options)
        config = LoaderConfig(batch_seconds=1.5, workers=workers)
        loader = Loader(dataset, dataset.build_tokenizer(), 0, config)
        return list(itertools.islice(loader.train_batches(epoch, position), n_batches))

    steps = batches(0, 0, 16)
    # across windows and passes
    assert steps[-1][0] > HubStream("train", 0, **options)._stream.n_windows
    for stop in (2, 9):
        epoch, position, _ = steps[stop]
        resumed = batches(epoch, position + 1, 15 - stop)
        for (_, _, batch), (_, _, expected) in zip(resumed, steps[stop + 1 :], strict=True):
            assert batch.ids == expected.ids
            assert torch.equal(batch.inputs, expected.inputs)
            assert torch.equal(batch.spans, expected.spans)


def test_characters_that_the_first_texts_lack_are_left_out_of_targets(options):
    dataset = HubStream("train", 0, **options)
    tokenizer = dataset.build_tokenizer()
    assert set(tokenizer.get_vocab()) == set("".join(all_texts(dataset)))
    dataset.texts[0] = "東" + dataset.texts[0]
    loader = Loader(dataset, tokenizer, 0, LoaderConfig(batch_seconds=100.0))
    [batch] = [batch for _, _, batch in itertools.islice(loader.train_batches(), 1)]
    row = batch.ids.index(dataset.ids[0])
    assert batch.target_lengths[row] == len(dataset.texts[0]) - 1


def all_texts(dataset):
    return [text for epoch in range(dataset._stream.n_windows) for text in dataset.at(epoch).texts]


def test_fingerprint_is_that_of_the_files(options, tmp_path):
    first = HubStream("train", 0, **options).fingerprint()
    assert HubStream("train", 0, **options).fingerprint() == first
    fewer = HubStream("train", 0, **options | {"splits": ("test", "validation", "test")})
    assert fewer.fingerprint()["files"] != first["files"]


def test_mistakes_are_refused(options, saved, tmp_path):
    for changed, message in (
        ({"path": ""}, r"needs a data set, data\.path="),
        ({"window": 0}, r"data\.window=0 must be at least 1"),
        ({"text": "words"}, r"has no column data\.text=words"),
        ({"splits": ("all", "validation", "test")}, "has no split 'all'"),
        ({"path": saved["path"]}, "has other files than parquet, such as .*use data=hub"),
    ):
        with pytest.raises(UserError, match=message):
            HubStream("train", 0, **options | changed)
