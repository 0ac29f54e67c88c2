"""The forms of manifests: stated durations, JSON lines, folders in the form of Kaldi."""

import json
import logging
import re

import numpy as np
import pytest
import soundfile
import torch

from famx.data import _durations
from famx.data._audio import read_audio
from famx.data._decoding import decode, decode_part
from famx.data._example import tone, write_corpus
from famx.data._fingerprint import describe_changes
from famx.data.manifest import Manifest
from famx.notation import SAMPLE_RATE, UserError

N_RECORDINGS = 12


def seconds_of(index):
    """Returns the duration of the recording of an index in the corpus."""
    return 0.3 + 0.05 * (index % 7)


@pytest.fixture
def corpus(tmp_path):
    """A corpus with manifests of all forms."""
    root = tmp_path / "corpus"
    for split, recordings in write_corpus(root).items():
        (root / split).mkdir()
        objects, scp, texts, speakers = [], [], [], []
        for index, (file, text, speaker) in enumerate(recordings):
            values = {"audio_filepath": file, "text": text, "duration": seconds_of(index)}
            objects.append(json.dumps(values | {"speaker": speaker, "lang": "en"}))
            scp.append(f"{speaker}-{index} {file}")
            texts.append(f"{speaker}-{index}\t {text}")
            speakers.append(f"{speaker}-{index} {speaker}")
        (root / f"{split}.jsonl").write_text("\n".join(objects))
        (root / split / "wav.scp").write_text("\n".join(scp))
        (root / split / "text").write_text("\r\n".join(texts), encoding="utf-8-sig")
        (root / split / "utt2spk").write_text("\n".join(speakers))
    return root


def read(root, suffix, split="train", **options):
    """Reads a split from manifests whose names end in a suffix."""
    names = {name: name + suffix for name in ("train", "dev", "test")}
    return Manifest(split, 0, root=str(root), **(names | options))


@pytest.mark.parametrize("suffix", [".jsonl", ""])
def test_every_form_has_the_recordings_texts_and_speakers_of_the_others(suffix, corpus):
    for split in ("train", "dev", "test"):
        expected = read(corpus, ".tsv", split, join=(2, 3))
        actual = read(corpus, suffix, split, join=(2, 3))
        assert actual.texts == expected.texts
        assert actual.speakers == expected.speakers
        assert actual.lengths == pytest.approx(expected.lengths)
        assert actual.files() == expected.files()
        assert torch.equal(actual[3].signal, expected[3].signal)


def test_utterances_of_kaldi_keep_their_names_and_files_of_json_their_paths(corpus):
    assert read(corpus, "").ids == [f"anna-{index}" for index in range(N_RECORDINGS)]
    assert read(corpus, ".jsonl").ids == [f"anna{index}.wav" for index in range(N_RECORDINGS)]


# durations that are stated


def test_stated_durations_spare_reading_the_headers(corpus, monkeypatch):
    read_names = []
    read_duration = _durations.read_duration

    def read_and_record(file, name):
        read_names.append(name)
        return read_duration(file, name)

    monkeypatch.setattr(_durations, "read_duration", read_and_record)
    lines = [f"anna{index}.wav\tone\t\t{seconds_of(index):.2f}" for index in range(3)]
    (corpus / "train.tsv").write_text("\n".join([*lines, "anna3.wav\tone\tanna\t"]))
    assert read(corpus, ".jsonl").lengths == [seconds_of(i) for i in range(N_RECORDINGS)]
    assert not read_names
    assert read(corpus, ".tsv").lengths == pytest.approx([0.3, 0.35, 0.4, 0.45])
    assert read_names == ["anna3.wav"]


@pytest.mark.parametrize("stated", ["9.5", "0.2"])
def test_other_duration_than_stated_is_refused_when_the_recording_is_read(stated, corpus):
    (corpus / "train.tsv").write_text(f"anna0.wav\tone\tanna\t{stated}\n")
    dataset = read(corpus, ".tsv")
    assert dataset.lengths == [float(stated)]
    sentence = rf"^anna0\.wav is 0\.30 s long, and its line states {float(stated):.2f} s; [^\n]*$"
    with pytest.raises(UserError, match=sentence):
        dataset[0]


@pytest.mark.parametrize("written", ["0", "-1", "nan", "inf", "1,5", "long"])
def test_duration_that_is_no_positive_number_is_refused(written, corpus):
    (corpus / "train.tsv").write_text(f"anna0.wav\tone\tanna\t{written}\n")
    sentence = rf"train\.tsv, line 1: the fourth column is '{re.escape(written)}', expected [^\n]*$"
    with pytest.raises(UserError, match=sentence):
        read(corpus, ".tsv")


# JSON lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 'one'}", r"is not JSON \(.*\); a line is one object$"),
        ("[" * 100_000, r"is not JSON \(.*\); a line is one object$"),
        ("[1, 2]", r"is not a JSON object; a line is one object, without commas$"),
        ("{}", r"has no text as its audio_filepath; its keys are $"),
        ('{"audio_filepath": "anna0.wav", "sentence": "a"}', r"its keys are .*, sentence$"),
        ('{"audio_filepath": "anna0.wav", "text": ["a"]}', r"has no text as its text"),
        ('{"audio_filepath": "anna0.wav", "text": null}', r"has no text as its text"),
        (r'{"audio_filepath": "anna0.wav", "text": "\ud800"}', r"text is no text in UTF-8"),
        ('{"audio_filepath": "nowhere.wav", "text": "a"}', r"there is no file .*nowhere\.wav$"),
        ('{"audio_filepath": "a\\u0000b", "text": "a"}', r"is not a path"),
        (
            '{"audio_filepath": "anna0.wav", "text": "a", "duration": true}',
            r"duration is 'true', expected a number of seconds, at least 0$",
        ),
        (
            '{"audio_filepath": "anna0.wav", "text": "a", "duration": NaN}',
            r"duration is 'nan', expected a number of seconds, at least 0$",
        ),
        (
            '{"audio_filepath": "anna0.wav", "text": "a", "offset": 0.1}',
            r"offset is 0\.1 and there is no duration beside it$",
        ),
    ],
)
def test_bad_json_line_is_refused_with_file_and_line(line, message, corpus):
    good = '{"audio_filepath": "anna1.wav", "text": "one"}'
    (corpus / "train.json").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(UserError, match=rf"train\.json, line 3[: ][^\n]*{message}"):
        read(corpus, ".json")


def test_numbers_and_false_as_texts_stay_as_they_are_written(corpus):
    lines = [
        f'{{"audio_filepath": "anna{i}.wav", "text": {x}}}'
        for i, x in enumerate(["7", "1.50", "false"])
    ]
    (corpus / "train.json").write_text("\n".join(lines))
    assert read(corpus, ".json", normaliser="unicode").texts == ["7", "1.50", "false"]


# parts of recordings


@pytest.fixture
def long(corpus):
    """A recording of 9 s whose samples are all different, in several formats."""
    noise = np.random.default_rng(0).normal(size=9 * SAMPLE_RATE) * tone(9.0)
    for suffix in ("wav", "flac", "mp3", "ogg"):
        soundfile.write(corpus / f"long.{suffix}", np.stack([noise, noise / 2], 1), SAMPLE_RATE)
    return corpus


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize(("start", "seconds"), [(0.0, 0.5), (3.3333, 1.2), (8.0, None)])
def test_part_of_a_recording_is_that_part_of_its_samples(suffix, start, seconds, long):
    file = long / f"long.{suffix}"
    [complete] = decode(file, "long")
    [part] = decode_part(file, "long", start, seconds)
    first = round(start * SAMPLE_RATE)
    expected = complete.samples[
        first : None if seconds is None else first + round(seconds * SAMPLE_RATE)
    ]
    np.testing.assert_array_equal(part.samples, expected)
    assert part.rate == complete.rate
    # the level of a part is its own
    signal = read_audio(file, None, start, seconds)
    assert 0.24 < signal.abs().max() <= 0.5
    assert abs(signal.mean()) < 1e-4


def test_offsets_and_segments_choose_the_same_parts(long):
    parts = [(0.5, 1.0), (4.25, 0.75), (0.5, 1.0)]
    lines = []
    for start, seconds in parts:
        values = {"audio_filepath": "long.flac", "text": "one", "offset": start}
        lines.append(json.dumps(values | {"duration": seconds}))
    (long / "train.jsonl").write_text("\n".join(lines))
    (long / "train" / "wav.scp").write_text("talk long.flac\nspare long.wav")
    segments = [f"u{i} talk {a} {a + n}" for i, (a, n) in enumerate(parts)]
    (long / "train" / "segments").write_text("\n".join([*segments, "u3 spare 8.5 -1"]))
    (long / "train" / "text").write_text("u0 one\nu1 one\nu2 one\nu3 one")
    (long / "train" / "utt2spk").unlink()
    by_offset, by_segment = read(long, ".jsonl"), read(long, "")
    assert by_offset.ids[1] == "long.flac[4.25:5]"
    assert by_segment.lengths == pytest.approx([1.0, 0.75, 1.0, 0.5])
    for dataset in (by_offset, by_segment):
        assert dataset.lengths[:3] == [seconds for _, seconds in parts]
        assert torch.equal(dataset[0].signal, dataset[2].signal)
        assert not torch.equal(dataset[0].signal[:9000], dataset[1].signal[:9000])
    assert torch.equal(by_offset[1].signal, by_segment[1].signal)
    assert len(by_segment[3].signal) == SAMPLE_RATE // 2


def test_segments_that_have_moved_change_the_fingerprint_alone(long):
    (long / "train" / "wav.scp").write_text("talk long.flac")
    (long / "train" / "text").write_text("u one")
    fingerprints = []
    for start in (1, 1, 2):
        (long / "train" / "segments").write_text(f"u talk {start} {start + 1}")
        fingerprints.append(read(long, "").fingerprint())
    assert fingerprints[0] == fingerprints[1]
    assert describe_changes({"train": fingerprints[1]}, {"train": fingerprints[2]}) == [
        "train (starts)"
    ]
    # complete files have none
    assert "starts" not in read(long, ".tsv").fingerprint()


@pytest.mark.parametrize(
    ("offset", "duration", "message"),
    [
        (
            8.5,
            1.0,
            r"is 0\.50 s long, and its line states 1\.00 s from 8\.50 s on; correct the line",
        ),
        (12.0, 1.0, r"begins at 12\.00 s in a file of 9\.00 s$"),
    ],
)
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_part_beyond_the_end_is_refused_when_it_is_read(suffix, offset, duration, message, long):
    values = {"audio_filepath": f"long.{suffix}", "text": "one", "offset": offset}
    (long / "train.jsonl").write_text(json.dumps(values | {"duration": duration}))
    dataset = read(long, ".jsonl")
    with pytest.raises(UserError, match=rf"^long\.{suffix}\[.*\] {message}"):
        dataset[0]


def test_open_segment_beyond_the_end_is_refused_before_training(long):
    (long / "train" / "wav.scp").write_text("talk long.flac")
    (long / "train" / "segments").write_text("u0 talk 9.5 -1")
    (long / "train" / "text").write_text("u0 one")
    with pytest.raises(UserError, match=r"^u0 begins at 9\.50 s in a file of 9\.00 s$"):
        read(long, "")


# folders in the form of Kaldi


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "wav.scp",
            "anna-0 touch made |",
            r"wav\.scp, line 1 is a command, 'touch made \|', which",
        ),
        ("wav.scp", "anna-0 | touch made", r"wav\.scp, line 1 is a command"),
        ("wav.scp", "anna-0", r"wav\.scp, line 1 names no file$"),
        ("wav.scp", "anna-0 nowhere.wav", r"line 1: there is no file .*nowhere\.wav$"),
        ("wav.scp", "a anna0.wav\na anna1.wav", r"line 2: a has a line already, .*line 1$"),
        ("text", "bob-7 seven", r"text, line 1: bob-7 is not in .*wav\.scp$"),
        ("text", "", r"the manifest .*train is empty$"),
        ("text", "anna-0", r"^anna-0 has no words in its text$"),
        ("segments", "u anna-0 0 1 2", r"line 1: expected UTTERANCE RECORDING START END, got"),
        ("segments", "u bob-0 0 1", r"line 1: bob-0 is not in wav\.scp$"),
        ("segments", "u anna-0 1 0.5", r"the end, 0\.5 s, is not after the start, 1 s$"),
        (
            "segments",
            "u anna-0 x 1",
            r"the start is 'x', expected a number of seconds, at least 0$",
        ),
        ("segments", "u anna-0 0 1", r"text, line 1: anna-0 is not in .*segments$"),
    ],
)
def test_bad_folder_of_kaldi_is_refused_in_one_sentence(
    file, content, message, corpus, monkeypatch
):
    monkeypatch.chdir(corpus)
    (corpus / "train" / file).write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        read(corpus, "")
    assert "\n" not in str(refused.value)
    assert not (corpus / "made").exists()


def test_folder_of_kaldi_without_texts_is_refused(corpus):
    (corpus / "train" / "text").unlink()
    with pytest.raises(UserError, match=r"there is no file .*text, which a folder in the form of"):
        read(corpus, "")


def test_folder_of_kaldi_without_recordings_is_refused(corpus):
    (corpus / "train" / "wav.scp").unlink()
    with pytest.raises(UserError, match=r"there is no file .*train.wav\.scp, which a folder in"):
        read(corpus, "")


def test_recordings_of_kaldi_without_a_text_are_counted(corpus, caplog):
    caplog.set_level(logging.WARNING, "famx")
    (corpus / "train" / "text").write_text("anna-3 a\u00a0b\nanna-1 one")
    dataset = read(corpus, "")
    assert dataset.ids == ["anna-3", "anna-1"]
    assert dataset.texts == ["a b", "one"]
    assert "10 of the 12 utterances of" in caplog.text


@pytest.mark.parametrize("suffix", [".jsonl", ""])
def test_paths_of_every_form_are_confined_if_requested(suffix, corpus):
    elsewhere = corpus.parent / "elsewhere.wav"
    soundfile.write(elsewhere, tone(0.3), SAMPLE_RATE)
    for path in (str(elsewhere), "../elsewhere.wav"):
        values = {"audio_filepath": path, "text": "one"}
        (corpus / "train.jsonl").write_text(json.dumps(values))
        (corpus / "train" / "wav.scp").write_text(f"u {path}")
        (corpus / "train" / "text").write_text("u one")
        assert read(corpus, suffix).files() == [str(elsewhere)]
        with pytest.raises(UserError, match=r"leaves the folder .*, and data\.allow_outside=false"):
            read(corpus, suffix, allow_outside=False)


def test_manifest_of_another_form_is_named_where_one_is_missing(corpus):
    (corpus / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"no manifest .*train\.tsv; there is train\.jsonl, which"):
        read(corpus, ".tsv")
    (corpus / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"there is dev\.jsonl: set data\.dev=dev\.jsonl, or "):
        read(corpus, ".jsonl", dev="dev.tsv")
    for form in (corpus / "dev.jsonl", corpus / "dev" / "wav.scp"):
        form.unlink()
    assert len(read(corpus, ".jsonl", "dev", dev="dev.tsv")) == 1


def test_dev_divides_no_file_of_several_segments(long):
    lines = []
    for index in range(10):
        soundfile.write(long / f"talk{index}.wav", tone(1.0, 200.0 + index), SAMPLE_RATE)
        for start in (0.0, 0.5):
            values = {"audio_filepath": f"talk{index}.wav", "text": "one", "offset": start}
            lines.append(json.dumps(values | {"duration": 0.5}))
    (long / "train.jsonl").write_text("\n".join(lines))
    train, dev = (read(long, ".jsonl", split, dev=None) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (18, 2)
    assert not set(train.files()) & set(dev.files())
