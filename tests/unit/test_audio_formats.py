"""Recordings as programs write them: unfinished headers, several in a file, any level."""

import io
import logging

import numpy as np
import pytest
import soundfile
import torch

from famx.data._audio import read_audio, read_duration
from famx.data._example import tone, write_corpus
from famx.data.manifest import Manifest
from famx.frontend.log_mel import LogMel
from famx.notation import UserError
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig

RATE = 16_000
# codecs of each format that may be truncated
CODECS = [
    ("WAV", "PCM_16"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAV", "GSM610"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("W64", "MS_ADPCM"),
    ("AIFF", "PCM_16"),
    ("AIFF", "IMA_ADPCM"),
    ("AU", "PCM_16"),
    ("AU", "G721_32"),
    ("VOC", "PCM_16"),
    ("NIST", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def encoded(signal, kind="WAV", codec=None, **options):
    """Returns the bytes of a file."""
    stream = io.BytesIO()
    soundfile.write(stream, signal, RATE, format=kind, subtype=codec, **options)
    return stream.getvalue()


def speech_like(seconds=2.0):
    """Returns a tone with noise, which does not compress to nothing."""
    signal = tone(seconds, hertz=300.0)
    return signal + 0.02 * np.random.default_rng(0).standard_normal(len(signal))


def replaced(content, position, new):
    return content[:position] + new + content[position + len(new) :]


def without_length(mp3):
    """Returns an MP3 file without its first frame, which states the number of frames."""
    # the second frame begins with the first two bytes of the first
    start = mp3.index(mp3[:2], 4)
    return mp3[start:]


def unusual_file(kind):
    """Returns a file, and the number of seconds that it plays."""
    signal = speech_like()
    if kind == "concatenated MP3":
        return encoded(signal, "MP3") * 2, 4.0
    if kind == "MP3 without a length, loud first":
        loud_first = np.concatenate([signal, 1e-4 * signal, 1e-4 * signal])
        options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
        return without_length(encoded(loud_first, "MP3", **options)), 6.0
    if kind == "MP3 without a length, quiet first":
        quiet_first = np.concatenate([1e-4 * signal, 1e-4 * signal, signal])
        options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
        return without_length(encoded(quiet_first, "MP3", **options)), 6.0
    if kind == "chained Ogg":
        return encoded(signal, "OGG", "VORBIS") + encoded(signal[::-1], "OGG", "VORBIS"), 4.0
    if kind == "FLAC of unknown length":
        flac = encoded(signal, "FLAC")
        return replaced(flac, 21, bytes([flac[21] & 0xF0]) + bytes(4)), 2.0
    if kind == "WAV of length 0":
        return replaced(encoded(signal), 40, bytes(4)), 2.0
    if kind == "WAV whose length is that of the file":
        wav = encoded(signal)
        return replaced(wav, 40, (len(wav) - 8).to_bytes(4, "little")), 2.0
    if kind == "GSM in WAV":
        return encoded(signal, "WAV", "GSM610"), 2.0
    if kind == "variable bit rate":
        return encoded(signal, "MP3", bitrate_mode="VARIABLE", compression_level=0.3), 2.0
    raise ValueError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "concatenated MP3",
        "MP3 without a length, loud first",
        "MP3 without a length, quiet first",
        "chained Ogg",
        "FLAC of unknown length",
        "WAV of length 0",
        "WAV whose length is that of the file",
        "GSM in WAV",
        "variable bit rate",
    ],
)
def test_files_are_read_to_their_end(kind):
    content, seconds = unusual_file(kind)
    # delay and padding of MP3 are up to 0.15 s for each recording
    assert len(read_audio(content)) / RATE == pytest.approx(seconds, abs=0.2)
    assert read_duration(content, kind) == pytest.approx(seconds, abs=0.3)


@pytest.mark.parametrize(("kind", "codec"), CODECS)
def test_truncated_file_is_refused_in_every_format(kind, codec):
    content = encoded(speech_like(), kind, codec)
    assert len(read_audio(content)) / RATE == pytest.approx(2.0, abs=0.06)
    for part in (0.9, 0.6, 0.3):
        with pytest.raises(UserError, match=r"^a (is truncated|is damaged|cannot be decoded)"):
            read_audio(content[: int(len(content) * part)], "a")


@pytest.mark.parametrize(
    ("factor", "offset"), [(32_768.0, 0.0), (1 / 32_768, 0.0), (0.3, 0.3), (-0.01, 0.5), (3e37, 0)]
)
def test_scale_and_offset_of_the_audio_do_not_matter(factor, offset):
    signal = speech_like().astype(np.float32)
    expected = read_audio(encoded(signal, "WAV", "FLOAT"))
    changed = signal * np.float32(factor) + np.float32(offset)
    actual = read_audio(encoded(changed, "WAV", "FLOAT"))
    frontend = LogMel(d_model=16).eval()

    def features(samples):
        return frontend.features(samples[None], torch.tensor([len(samples)]))[0]

    torch.testing.assert_close(features(actual), features(expected), atol=0.05, rtol=0.0)


def test_ordinary_level_stays_as_it_is():
    signal = tone(1.0) * 0.9  # a peak of 0.45
    signal -= signal.mean()
    expected = torch.from_numpy(signal.astype(np.float32))
    torch.testing.assert_close(read_audio(encoded(signal)), expected, atol=2**-14, rtol=0.0)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_training_reads_what_transcription_reads(suffix, tmp_path):
    write_corpus(tmp_path, suffix)
    dataset = Manifest("train", 0, root=str(tmp_path))
    for index, name in enumerate(dataset.ids):
        assert torch.equal(dataset[index].signal, read_audio(tmp_path / name))


def test_channels_of_opposite_phase_are_refused():
    signal = speech_like()
    with pytest.raises(UserError, match=r"^a has channels of opposite phase"):
        read_audio(encoded(np.stack([signal, -signal], 1)), "a")
    # one silent channel is usual
    read_audio(encoded(np.stack([signal, 0 * signal], 1)), "a")


def test_largest_numbers_do_not_overflow():
    signal = np.full((RATE, 2), 3.4e38, np.float32)
    signal[::2] *= -1
    assert read_audio(encoded(signal, "WAV", "FLOAT")).isfinite().all()


def with_rate(rate):
    return replaced(encoded(speech_like()), 24, rate.to_bytes(4, "little"))


def claiming_flac():
    flac = encoded(speech_like(), "FLAC")
    return replaced(flac, 21, bytes([flac[21] | 0x0F]) + b"\xff" * 4)


def claiming_mp3():
    mp3 = encoded(speech_like(), "MP3")
    tag = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    return replaced(mp3, tag + 8, b"\x7f\xff\xff\xff")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_rate(2), "a has a sample rate of 2 Hz, outside 100 to 1,000,000 Hz"),
        (with_rate(40_000_000), "a has a sample rate of 40,000,000 Hz"),
        (claiming_flac(), r"a is 1,193\.0 hours long, which needs 1,099.5 GB of memory"),
        (claiming_mp3(), r"a is truncated: its header states [\d,]+ frames and the file holds"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "a cannot be decoded: "),
        (b"", "a cannot be decoded: "),
    ],
)
def test_header_that_lies_is_refused_in_one_sentence(content, message, capfd):
    with pytest.raises(UserError, match=rf"^{message}[^\n]*$"):
        read_audio(content, "a")
    # decoders print nothing
    assert capfd.readouterr() == ("", "")


def test_name_of_a_file_is_never_an_address():
    for name in ("http://localhost/a.wav", "concat:a.wav|b.wav", "a\0.wav"):
        with pytest.raises(UserError, match=r"does not exist$"):
            read_audio(name)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_silent_corpus_is_refused(skip_bad, tmp_path, caplog):
    write_corpus(tmp_path)
    for file in tmp_path.glob("anna*.wav"):
        soundfile.write(file, np.full(8000, 0.25), RATE)
    dataset = Manifest("train", 0, root=str(tmp_path), skip_bad=skip_bad)
    loader = Loader(dataset, None, 0, LoaderConfig(workers=0))
    message = r"^anna\d+\.wav is silent" if not skip_bad else r"^none of 12 examples can be read"
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=message):
        next(loader.train_batches())
    assert ("is silent: all its samples are equal" in caplog.text) == skip_bad


@pytest.mark.parametrize("seconds", [float("nan"), 0.0, -1.0])
def test_limit_of_seconds_must_be_positive(seconds, tmp_path):
    write_corpus(tmp_path)
    with pytest.raises(UserError, match=rf"max_seconds={seconds} must be more than 0 seconds$"):
        Manifest("train", 0, root=str(tmp_path), max_seconds=seconds)
