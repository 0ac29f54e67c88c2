"""Manifests of cuts of lhotse."""

import gzip
import json
import sys

import pytest
import torch

from famx.data._example import write_corpus
from famx.data.manifest import Manifest
from famx.notation import UserError

lhotse = pytest.importorskip("lhotse", reason="needs famx[lhotse]")
cuts_of = lhotse.CutSet.from_cuts


def recording_of(root, file):
    recording = lhotse.Recording.from_file(root / file)
    # relative to the folder of the manifest
    recording.sources[0].source = file
    return recording


def segment(recording, name, start, duration, text="one", speaker="anna"):
    return lhotse.SupervisionSegment(
        name, recording.id, start, duration, text=text, speaker=speaker
    )


@pytest.fixture
def corpus(tmp_path):
    """A corpus with a manifest of cuts for each split."""
    for split, recordings in write_corpus(tmp_path).items():
        cuts = []
        for file, text, speaker in recordings:
            recording = recording_of(tmp_path, file)
            cut = recording.to_cut()
            cut.supervisions = [segment(recording, file, 0, recording.duration, text, speaker)]
            cuts.append(cut)
        cuts_of(cuts).to_file(tmp_path / f"{split}.jsonl.gz")
    return tmp_path


def read(root, name="train.jsonl.gz", split="train", **options):
    names = {"train": name, "dev": "dev.jsonl.gz", "test": "test.jsonl.gz"}
    return Manifest(split, 0, root=str(root), **(names | options))


def write(root, *cuts):
    cuts_of(cuts).to_file(root / "other.jsonl.gz")


def test_cuts_have_the_recordings_texts_and_speakers_of_the_table(corpus):
    for split in ("train", "dev", "test"):
        expected = Manifest(split, 0, root=str(corpus), join=(2, 3))
        actual = read(corpus, split=split, join=(2, 3))
        assert actual.ids == expected.ids
        assert actual.texts == expected.texts
        assert actual.speakers == expected.speakers
        assert actual.lengths == pytest.approx(expected.lengths)
        assert actual.files() == expected.files()
        assert torch.equal(actual[3].signal, expected[3].signal)


def test_each_supervision_is_the_part_of_the_recording_that_it_describes(corpus):
    recording = recording_of(corpus, "anna6.wav")  # 0.6 s
    first = lhotse.MonoCut("cut", 0.1, 0.4, 0, recording=recording)
    first.supervisions = [
        segment(recording, "a", 0.0, 0.2, "one"),
        segment(recording, "b", 0.2, 0.25, "two"),
    ]
    write(corpus, first)
    dataset = read(corpus, "other.jsonl.gz")
    assert dataset.ids == ["a", "b"]
    assert dataset.texts == ["one", "two"]
    assert dataset.lengths == pytest.approx([0.2, 0.25])
    (corpus / "parts.jsonl").write_text(
        "\n".join(
            json.dumps({"audio_filepath": "anna6.wav", "text": "x", "offset": start, "duration": d})
            for start, d in ((0.1, 0.2), (0.3, 0.25))
        )
    )
    expected = read(corpus, "parts.jsonl")
    for index in range(2):
        assert torch.equal(dataset[index].signal, expected[index].signal)


def refused(corpus, message):
    with pytest.raises(UserError, match=message) as error:
        read(corpus, "other.jsonl.gz")
    assert "\n" not in str(error.value)


def test_cuts_that_would_be_read_differently_are_refused(corpus):
    recording = recording_of(corpus, "anna6.wav")
    cut = recording.to_cut()
    cut.supervisions = [segment(recording, "a", 0, 0.6)]
    # mixed with another
    write(corpus, cut.mix(cut, snr=10))
    refused(corpus, "line 1, is a MixedCut, expected a MonoCut")
    # played faster
    write(corpus, cut.perturb_speed(1.1))
    refused(corpus, "cut anna6_sp1.1 is changed when it is loaded .1 transforms")
    # one channel of two
    recording.sources[0].channels = [0, 1]
    recording.channel_ids = [0, 1]
    write(corpus, cut)
    refused(corpus, "cut anna6 is one of 2 channels, and famx reads the mean")
    # the output of a command, which must not be run
    recording = recording_of(corpus, "anna6.wav")
    recording.sources[0].type = "command"
    recording.sources[0].source = f"touch {corpus}/hacked"
    cut.recording = recording
    write(corpus, cut)
    refused(corpus, "has a source of type command, expected file")
    assert not (corpus / "hacked").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cut: cut.supervisions.clear(), "has no supervision"),
        (lambda cut: setattr(cut.supervisions[0], "text", None), "the supervision a has no text"),
        (
            lambda cut: setattr(cut.supervisions[0], "duration", 2.0),
            "the supervision a is from 0 to 2 s, and its recording from 0 to 0.6 s",
        ),
        (
            lambda cut: setattr(cut.recording.sources[0], "source", "gone.wav"),
            "there is no file .*gone.wav",
        ),
        (lambda cut: setattr(cut, "recording", None), "has no recording"),
    ],
)
def test_cuts_that_lack_something_are_refused(corpus, change, message):
    recording = recording_of(corpus, "anna6.wav")
    cut = lhotse.MonoCut("cut", 0, 0.6, 0, recording=recording)
    cut.supervisions = [segment(recording, "a", 0, 0.6)]
    change(cut)
    write(corpus, cut)
    refused(corpus, f"cut cut:? {message}")


def test_lines_that_are_no_cuts_are_refused_by_their_number(corpus):
    lines = gzip.decompress((corpus / "train.jsonl.gz").read_bytes()).decode().splitlines()
    for line, message in (
        ("{", "line 2, is no cut that lhotse can read"),
        ('{"type": "MonoCut"}', "line 2, is no cut that lhotse can read"),
        ('{"a": 1}', "line 2, is no cut that lhotse can read"),
        (json.dumps(recording_of(corpus, "anna0.wav").to_dict()), "line 2, is a Recording"),
    ):
        with gzip.open(corpus / "other.jsonl.gz", "wt") as file:
            file.write("\n".join([lines[0], line]))
        refused(corpus, message)
    # cut short, and no gzip at all
    content = (corpus / "train.jsonl.gz").read_bytes()
    (corpus / "other.jsonl.gz").write_bytes(content[:-30])
    refused(corpus, "is no cut that lhotse can read: EOFError")
    (corpus / "other.jsonl.gz").write_text("text")
    refused(corpus, "line 1, is no cut that lhotse can read: BadGzipFile")


def test_without_lhotse_the_package_is_named(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'famx\[lhotse\]'"):
        read(corpus)


def test_a_manifest_in_this_form_is_named_where_another_is_missing(corpus):
    (corpus / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"there is no manifest .*; there is train\.jsonl\.gz"):
        Manifest("train", 0, root=str(corpus))
