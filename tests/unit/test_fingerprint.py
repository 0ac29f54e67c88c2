"""Digests of data: what changed since a run began, and recordings that splits share."""

import os
import shutil

import numpy as np
import pytest
import soundfile

from famx.data._example import write_corpus
from famx.data._fingerprint import describe_changes, digest_of, fingerprint, shared_files
from famx.data.hub import Hub
from famx.data.manifest import Manifest
from famx.data.text import Text


@pytest.fixture
def folder(tmp_path):
    write_corpus(tmp_path / "corpus", n_recordings=4)
    return tmp_path / "corpus"


def fingerprints(folder):
    return {"train": Manifest("train", 0, root=str(folder)).fingerprint()}


def edit(folder, change):
    lines = (folder / "train.tsv").read_text().split("\n")
    (folder / "train.tsv").write_text("\n".join(change(lines)))


def overwrite(folder):
    """Overwrites a recording by another one of the same size and time."""
    file = folder / "anna0.wav"
    status = file.stat()
    samples, rate = soundfile.read(file)
    soundfile.write(file, np.roll(samples, 2000), rate)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        (lambda folder: None, []),
        (lambda folder: edit(folder, lambda lines: [*lines[1:], lines[0]]), ["train (order)"]),
        (
            lambda folder: edit(
                folder, lambda lines: [lines[0].replace("zero", "one"), *lines[1:]]
            ),
            ["train (texts)"],
        ),
        (lambda folder: edit(folder, lambda lines: lines[:-1]), ["train (names)"]),
        (overwrite, ["train (recordings)"]),
    ],
)
def test_change_of_the_data_is_named(change, phrases, folder):
    saved = fingerprints(folder)
    change(folder)
    assert describe_changes(saved, fingerprints(folder)) == phrases


def test_moved_and_copied_data_are_the_same(folder, tmp_path):
    saved = fingerprints(folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert describe_changes(saved, fingerprints(tmp_path / "copy")) == []


def test_change_of_a_text_file_is_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("abcdefgh" * 100)
    saved = {"train": Text("train", 0, path=str(file), block=8).fingerprint()}
    file.write_text("abcdefhg" + "abcdefgh" * 99)
    current = {"train": Text("train", 0, path=str(file), block=8).fingerprint()}
    assert describe_changes(saved, current) == ["train (texts)"]


def test_recordings_of_two_splits_are_compared_by_their_content(folder):
    train = Manifest("train", 0, root=str(folder)).files()
    # the splits of this corpus have the same tones
    for index in range(4):
        samples, rate = soundfile.read(folder / f"carl{index}.wav")
        soundfile.write(folder / f"carl{index}.wav", -samples, rate)
    shutil.copyfile(folder / "anna2.wav", folder / "carl1.wav")
    test = Manifest("test", 0, root=str(folder)).files()
    assert shared_files(train, test) == [(str(folder / "carl1.wav"), str(folder / "anna2.wav"))]
    # the same files, and none
    assert shared_files(train, train[:1]) == [(train[0], train[0])]
    assert shared_files(train, []) == []


def test_recordings_that_differ_outside_of_their_middle_are_not_the_same(tmp_path):
    silence = np.zeros(16_000)
    for name, position in (("a.wav", 10), ("b.wav", 20)):
        signal = silence.copy()
        signal[position] = 0.5
        soundfile.write(tmp_path / name, signal, 16_000)
    assert shared_files([str(tmp_path / "a.wav")], [str(tmp_path / "b.wav")]) == []


def test_files_of_an_audiofolder_are_listed_and_bytes_are_none(folder, tmp_path):
    root = tmp_path / "folder" / "train"
    root.mkdir(parents=True)
    shutil.copyfile(folder / "anna0.wav", root / "0.wav")
    (root / "metadata.csv").write_text("file_name,text\n0.wav,a\n")
    assert Hub("train", path=str(root.parent)).files() == [str(root / "0.wav")]
    assert Hub("train", **Hub.example(tmp_path / "saved")).files() == []


def test_digest_of_a_split_depends_on_its_texts_and_not_on_their_order():
    rows = [("a", "one", 1.0), ("b", "two", 2.0)]
    same = digest_of(fingerprint(*zip(*rows, strict=True), []))
    assert digest_of(fingerprint(*zip(*rows[::-1], strict=True), [])) == same
    edited = [rows[0], ("b", "too", 2.0)]
    assert digest_of(fingerprint(*zip(*edited, strict=True), [])) != same
