"""The table of durations in the cache."""

import os
import struct

import pytest
import soundfile

from famx.data import _durations
from famx.data._example import tone, write_corpus
from famx.data.manifest import Manifest
from famx.notation import UserError


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus that is large enough for a table."""
    monkeypatch.setattr(_durations, "MIN_FILES", 1)
    monkeypatch.setenv("FAMX_CACHE", str(tmp_path / "cache"))
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def read_names(monkeypatch):
    """The names of recordings whose headers are read."""
    names = []
    read_duration = _durations.read_duration

    def read_and_record(file, name):
        names.append(name)
        return read_duration(file, name)

    monkeypatch.setattr(_durations, "read_duration", read_and_record)
    return names


def test_headers_are_read_once(corpus, read_names):
    first = Manifest("train", 0, root=str(corpus))
    assert sorted(read_names) == sorted(first.ids)
    read_names.clear()
    second = Manifest("train", 0, root=str(corpus))
    assert not read_names
    assert second.lengths == first.lengths
    # splits of a folder share its table
    Manifest("dev", 0, root=str(corpus))
    read_names.clear()
    Manifest("train", 0, root=str(corpus))
    assert not read_names


def test_changed_file_is_read_again(corpus, read_names):
    Manifest("train", 0, root=str(corpus))
    read_names.clear()
    soundfile.write(corpus / "anna3.wav", tone(0.9), 16_000)
    os.utime(corpus / "anna5.wav", ns=(0, 1))
    dataset = Manifest("train", 0, root=str(corpus))
    assert sorted(read_names) == ["anna3.wav", "anna5.wav"]
    assert dataset.lengths[3] == pytest.approx(0.9)


def test_changed_file_of_the_same_size_and_time_is_read_again(corpus):
    lengths = Manifest("train", 0, root=str(corpus)).lengths
    file = corpus / "anna3.wav"
    status = file.stat()
    header = bytearray(file.read_bytes())
    header[24:32] = struct.pack("<II", 8000, 16_000)
    file.write_bytes(header)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    lengths[3] *= 2
    assert Manifest("train", 0, root=str(corpus)).lengths == pytest.approx(lengths)


def test_bad_file_is_refused_each_time(corpus):
    (corpus / "anna3.wav").write_bytes(b"no audio")
    for _ in range(2):
        with pytest.raises(UserError, match=r"^anna3\.wav cannot be decoded"):
            Manifest("train", 0, root=str(corpus))


def test_damaged_or_unwritable_table_changes_nothing(corpus, monkeypatch, tmp_path):
    expected = Manifest("train", 0, root=str(corpus)).lengths
    [table] = (tmp_path / "cache").iterdir()
    for content in (b"", table.read_bytes()[:200], b"PAR1" * 99):
        table.write_bytes(content)
        assert Manifest("train", 0, root=str(corpus)).lengths == expected
    # a file in the place of the cache
    monkeypatch.setenv("FAMX_CACHE", str(corpus / "train.tsv"))
    assert Manifest("train", 0, root=str(corpus)).lengths == expected
