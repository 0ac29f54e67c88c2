"""The lines of manifests: which are dev where there is no manifest of dev, and their files."""

import logging
import os
import unicodedata

import pytest

from famx.data._example import write_corpus
from famx.data._manifest_rows import rows_of_split
from famx.data.manifest import Manifest
from famx.notation import UserError


def write_repeated(folder, words, n_speakers, lines_per_file=1):
    """Writes a manifest in which every speaker reads the same words in the same order."""
    write_corpus(folder, n_recordings=len(words) * n_speakers)
    (folder / "dev.tsv").unlink()
    lines = []
    for index in range(len(words) * n_speakers):
        lines += [f"anna{index}.wav\t{words[index % len(words)]}"] * lines_per_file
    (folder / "train.tsv").write_text("\n".join(lines))


def test_dev_without_a_manifest_is_spread_over_the_texts_that_repeat(tmp_path):
    words = ["w" + chr(ord("a") + index) for index in range(10)]
    write_repeated(tmp_path, words, n_speakers=10)
    train = Manifest("train", 0, root=str(tmp_path))
    dev = Manifest("dev", 0, root=str(tmp_path))
    assert sorted(dev.texts) == words
    assert len(train) == 90
    assert not set(train.ids) & set(dev.ids)


def test_dev_without_a_manifest_depends_neither_on_the_order_nor_on_the_folder(tmp_path):
    write_repeated(tmp_path / "a", ["one", "two", "three"], n_speakers=8)
    dev = Manifest("dev", 0, root=str(tmp_path / "a")).ids
    (tmp_path / "a").rename(tmp_path / "b")
    lines = (tmp_path / "b" / "train.tsv").read_text().split("\n")
    (tmp_path / "b" / "train.tsv").write_text("\n".join(reversed(lines)))
    assert sorted(Manifest("dev", 0, root=str(tmp_path / "b")).ids) == sorted(dev)


def test_recording_that_is_listed_twice_is_not_divided_between_train_and_dev(tmp_path):
    write_repeated(tmp_path, ["one", "two"], n_speakers=10, lines_per_file=3)
    train = Manifest("train", 0, root=str(tmp_path))
    dev = Manifest("dev", 0, root=str(tmp_path))
    assert (len(train), len(dev)) == (54, 6)
    assert not set(train.ids) & set(dev.ids)


def test_missing_dev_manifest_is_reported_unless_it_is_null(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "famx")
    write_repeated(tmp_path, ["one", "two"], n_speakers=10)
    Manifest("train", 0, root=str(tmp_path), dev=None)
    assert not caplog.messages
    Manifest("train", 0, root=str(tmp_path))
    Manifest("dev", 0, root=str(tmp_path))
    # one sentence, which commands print once
    assert len(caplog.messages) == 2
    assert len(set(caplog.messages)) == 1
    assert "2 of the 20 recordings of train.tsv are dev" in caplog.messages[0]


def test_too_few_lines_for_a_dev_are_refused(tmp_path):
    write_repeated(tmp_path, ["one"], n_speakers=9)
    with pytest.raises(
        UserError, match=r"different files; dev is a tenth of at least 10: set data\.dev"
    ):
        Manifest("train", 0, root=str(tmp_path))


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_file_is_read_in_either_unicode_form(listed, stored, tmp_path):
    root = tmp_path / unicodedata.normalize(stored, "d\u00e9j\u00e0")
    write_corpus(root, n_recordings=1)
    (root / "anna0.wav").rename(root / unicodedata.normalize(stored, "\u00e9.wav"))
    name = unicodedata.normalize(listed, "\u00e9.wav")
    (root / "train.tsv").write_text(f"{name}\tone\n", encoding="utf-8")
    typed = tmp_path / unicodedata.normalize(listed, "d\u00e9j\u00e0")
    dataset = Manifest("train", 0, root=str(typed))
    assert dataset.ids == [name]
    assert len(dataset[0].signal)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"join": (1, 1_000_000_000)}, r"data\.join=\[1, 1000000000\] is not .* most <= 100$"),
        ({"max_seconds": float("nan")}, r"data\.max_seconds=nan must be more than 0 seconds$"),
        ({"max_seconds": -1.0}, r"data\.max_seconds=-1\.0 must be more than 0 seconds$"),
        ({"train": "a\0b"}, r"there is no manifest"),
    ],
)
def test_sizes_that_nobody_means_are_refused(options, message, tmp_path):
    write_corpus(tmp_path, n_recordings=2)
    with pytest.raises(UserError, match=message):
        Manifest("train", 0, root=str(tmp_path), **options)


def test_links_of_a_folder_are_resolved_once_for_all_its_recordings(tmp_path, monkeypatch):
    write_corpus(tmp_path, n_recordings=12)
    resolved = []
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(path) or realpath(path))
    rows = rows_of_split(tmp_path, "train", "train.tsv", "dev.tsv", "test.tsv")
    assert len(rows) > 10
    # the root, and the folder of the recordings
    assert len(resolved) == 2
