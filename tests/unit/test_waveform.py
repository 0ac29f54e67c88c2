"""Frames of samples, and the pitch of frames."""

import pytest
import torch
from torch.testing import assert_close

from famx.frontend.log_mel_pitch import pitch
from famx.registry import build


def harmonics(hertz, seconds=0.5):
    """Returns a sound of a fundamental and its first four overtones."""
    time = torch.arange(int(16_000 * seconds)) / 16_000
    tones = [torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 6)]
    return 0.1 * torch.stack(tones).sum(0)[None]


def test_loudness_of_a_waveform_does_not_matter():
    frontend = build("frontend", {"name": "waveform", "channels": 16}, d_model=8)
    signal = 0.1 * torch.randn(1, 4000)
    lengths = torch.tensor([4000])
    loud, _ = frontend(signal, lengths)
    quiet, _ = frontend(0.1 * signal + 0.05, lengths)
    assert_close(loud, quiet, atol=1e-3, rtol=1e-3)


def test_frames_of_a_waveform_are_40_ms_long():
    frontend = build("frontend", {"name": "waveform", "channels": 16}, d_model=8)
    assert frontend.n_frames(torch.tensor([1, 640, 641, 16_000])).tolist() == [1, 1, 2, 25]


def test_spans_in_time_silence_a_waveform_and_bands_do_not():
    frontend = build("frontend", {"name": "waveform", "channels": 16}, d_model=8).eval()
    signal = torch.randn(1, 6400)
    lengths = torch.tensor([6400])
    expected, _ = frontend(signal, lengths)
    band, _ = frontend(signal, lengths, torch.tensor([[[0.0, 1.0, 0.2, 0.1]]]))
    assert torch.equal(band, expected)
    x, _ = frontend(signal, lengths, torch.tensor([[[0.5, 0.5, 0.0, 1.0]]]))
    # a frame reads 1,904 samples from its begin on; all have the same mean subtracted
    assert_close(x[0, 1:3] - x[0, 0], expected[0, 1:3] - expected[0, 0])
    # inside of the span, all frames are those of silence
    assert_close(x[0, 6], x[0, 7])
    assert not torch.allclose(x[0, 6], expected[0, 6])


@pytest.mark.parametrize("hertz", [70.0, 110.0, 220.0, 390.0])
def test_pitch_of_a_tone_is_its_frequency(hertz):
    f0, strength = pitch(harmonics(hertz), torch.tensor([8000]), 10)
    assert_close(f0, torch.full_like(f0, hertz), rtol=0.02, atol=0)
    assert strength.min() > 0.9


def test_noise_has_no_strong_pitch_and_silence_none():
    _, strength = pitch(torch.randn(1, 8000), torch.tensor([8000]), 10)
    assert strength.mean() < 0.4
    _, strength = pitch(torch.zeros(1, 8000), torch.tensor([8000]), 10)
    assert not strength.any()


def test_pitch_adds_nothing_to_the_frames_of_log_mel_at_first():
    torch.manual_seed(0)
    plain = build("frontend", {"name": "log_mel", "channels": 4}, d_model=8)
    torch.manual_seed(0)
    with_pitch = build("frontend", {"name": "log_mel_pitch", "channels": 4}, d_model=8)
    signal = harmonics(110.0)
    expected, lengths = plain(signal, torch.tensor([8000]))
    x, n_frames = with_pitch(signal, torch.tensor([8000]))
    assert torch.equal(x, expected) and torch.equal(n_frames, lengths)
    with torch.no_grad():
        with_pitch.pitch_out.weight[3, 1] = 1.0
    x, _ = with_pitch(signal, torch.tensor([8000]))
    assert (x - expected)[0, 1:10, 3].min() > 0.9
