"""Audio files of all formats, good and bad."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from famx.data._audio import read_audio, resample
from famx.data._example import tone, write_corpus
from famx.data.manifest import Manifest
from famx.notation import UserError
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig


@pytest.mark.parametrize(
    ("rate", "new_rate"),
    [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000), (90, 100), (110, 100)],
)
def test_resample_equals_torchaudio(rate, new_rate):
    from torchaudio.functional import resample as reference

    signal = torch.randn(5_003)
    torch.testing.assert_close(
        resample(signal, rate, new_rate), reference(signal, rate, new_rate), atol=2e-5, rtol=1e-5
    )


def test_odd_sample_rate_needs_no_huge_filter_bank():
    assert abs(len(resample(torch.randn(11_127), 11_127, 16_000)) - 16_000) <= 1


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_every_format_is_read_as_16_khz_mono(suffix, rate, tmp_path):
    file = tmp_path / f"a{suffix}"
    sound = tone(1.0, rate=rate)
    soundfile.write(file, np.stack([sound, 0.5 * sound], 1), rate)
    signal = read_audio(file).numpy()
    assert abs(len(signal) - 16_000) < 1_300
    power = np.abs(np.fft.rfft(signal * np.hanning(len(signal)))) ** 2
    assert np.argmax(power) * 16_000 / len(signal) == pytest.approx(440, abs=3)
    # the mean of both channels
    assert np.abs(signal).max() == pytest.approx(0.375, rel=0.05)
    assert torch.equal(read_audio(file.read_bytes()), torch.from_numpy(signal))


def damage(file, how):
    if how == "undecodable":
        file.write_bytes(b"not audio at all" * 20)
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no samples":
        soundfile.write(file, np.zeros(0), 16_000)
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:8044])
    elif how == "ten hours":
        soundfile.write(file, np.zeros(36_000 * 100, np.int16), 100, subtype="PCM_U8")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("undecodable", r"anna3\.wav cannot be decoded: "),
        ("empty", r"anna3\.wav cannot be decoded: "),
        ("no samples", r"anna3\.wav holds no samples"),
        (
            "truncated",
            r"anna3\.wav is truncated: its header states 7,200 frames and the file holds 4,000",
        ),
        ("ten hours", r"anna3\.wav is 36,000\.0 s long, over the limit of 40\.0 s"),
    ],
)
def test_bad_recording_is_refused_or_skipped(how, message, tmp_path, caplog):
    write_corpus(tmp_path)
    damage(tmp_path / "anna3.wav", how)
    with pytest.raises(UserError, match=rf"^{message}[^\n]*$"):
        Manifest("train", 0, root=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        dataset = Manifest("train", 0, root=str(tmp_path), skip_bad=True)
    assert len(dataset) == 11
    assert "1 of 12 recordings are left out; the first: anna3.wav" in caplog.text
    assert len(caplog.records) == 1


def test_corpus_of_bad_recordings_alone_is_refused(tmp_path):
    write_corpus(tmp_path, n_recordings=2)
    for index in range(2):
        damage(tmp_path / f"anna{index}.wav", "empty")
    with pytest.raises(UserError, match=r"none of 2 recordings can be used; anna0\.wav cannot"):
        Manifest("train", 0, root=str(tmp_path), skip_bad=True)


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_truncated_recording_is_refused(suffix, tmp_path):
    soundfile.write(tmp_path / f"a{suffix}", tone(1.0), 16_000)
    content = (tmp_path / f"a{suffix}").read_bytes()
    with pytest.raises(
        UserError, match=rf"a\{suffix} is truncated: its header states 16,000 frames"
    ):
        read_audio(content[: len(content) // 2], f"a{suffix}")


@pytest.mark.parametrize("length", [2**32 - 1, 2**31 - 1, 0x7FFFF000])
def test_wav_file_written_into_a_pipe_is_accepted(length, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16_000)
    content = (tmp_path / "a.wav").read_bytes()
    piped = content[:40] + length.to_bytes(4, "little") + content[44:]
    assert torch.equal(read_audio(piped), read_audio(content))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_refused_or_skipped_when_decoded(workers, tmp_path):
    write_corpus(tmp_path, suffix=".flac")
    # the header stays right
    file = tmp_path / "anna3.flac"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"\0" * (len(content) // 2))
    config = LoaderConfig(batch_seconds=100.0, workers=workers)

    dataset = Manifest("train", 0, root=str(tmp_path))
    with pytest.raises(UserError, match=r"^anna3\.flac cannot be decoded: [^\n]*$"):
        next(Loader(dataset, dataset.build_tokenizer(), 0, config).train_batches())

    dataset = Manifest("train", 0, root=str(tmp_path), skip_bad=True)
    _, _, batch = next(Loader(dataset, dataset.build_tokenizer(), 0, config).train_batches())
    assert len(batch) == 11
    assert "anna3.flac" not in batch.ids
