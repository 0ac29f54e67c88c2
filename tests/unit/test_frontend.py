import jaxtyping
import pytest
import torch
import torchaudio
from torch.testing import assert_close

from famx.contracts import applicable, contracts
from famx.notation import UserError
from famx.registry import PARTS, build, names


@pytest.mark.parametrize(
    ("name", "law"),
    [
        (name, law)
        for name in names("frontend")
        for law in applicable("frontend", PARTS["frontend"][name])
    ],
)
def test_law(name, law):
    contracts("frontend")[law](PARTS["frontend"][name])


def log_mel(**hyper):
    return build("frontend", {"name": "log_mel", **hyper}, d_model=8)


def test_features_are_torchaudios_log_mel_energies():
    theirs = torchaudio.transforms.MelSpectrogram(16_000, 512, 400, 160, center=False, n_mels=80)
    signal = torch.randn(2, 4000)
    x, lengths = log_mel().features(signal, torch.tensor([4000, 4000]))
    # torch.stft puts a window of 400 in the middle of 512 samples
    energies = theirs(torch.nn.functional.pad(signal, (56, 200))).mT
    energies = energies[:, : x.shape[1]]
    assert_close(
        x, (energies / energies.mean((1, 2), keepdim=True) + 1e-6).log(), rtol=1e-3, atol=1e-3
    )
    assert lengths.tolist() == [24, 24]


def test_a_recording_may_be_as_quiet_as_it_likes():
    signal, lengths = torch.randn(1, 4000) * torch.linspace(0, 1, 4000), torch.tensor([4000])
    loud, quiet = (log_mel().features(gain * signal, lengths)[0] for gain in (1.0, 1e-3))
    assert_close(loud, quiet, rtol=1e-3, atol=1e-3)


def test_every_sample_lies_in_a_window():
    for size in (1, 399, 400, 401, 559, 560, 561, 720, 721):
        x, lengths = log_mel().features(torch.ones(1, size), torch.tensor([size]))
        last = 160 * (lengths.item() - 1)
        assert x.shape[1] == lengths.item()
        assert last + 400 >= size and (last == 0 or last - 160 + 400 < size)


def test_an_utterance_gets_zero_mean_and_unit_variance_of_each_bin():
    x, valid = 3 * torch.randn(2, 50, 80) + 7, torch.arange(50) < torch.tensor([50, 30])[:, None]
    y = log_mel().normalized(x, valid[..., None])[1, :30]
    assert_close(y.mean(0), torch.zeros(80), atol=1e-5, rtol=0)
    assert_close(y.var(0, correction=0), torch.ones(80), atol=1e-2, rtol=0)


def test_global_normalisation_is_that_of_all_frames_seen_in_training():
    frontend, seen = log_mel(normalize="global"), []
    for size in (50, 20, 90):
        x, valid = (
            3 * torch.randn(2, size, 80) + 7,
            torch.arange(size) < torch.tensor([size, 10])[:, None],
        )
        frontend.normalized(x, valid[..., None])
        seen.append(x[valid])
    seen = torch.cat(seen)
    frontend.eval()
    y = frontend.normalized(seen[None], torch.ones(1, len(seen), 1, dtype=torch.bool))[0]
    assert_close(
        y, (seen - seen.mean(0)) / (seen.var(0, correction=0) + 1e-2).sqrt(), atol=1e-4, rtol=1e-4
    )


def test_spans_cover_cells_whose_centre_they_hold():
    spans = torch.tensor(
        [
            [[0.25, 0.5, 0.0, 1.0], [0.0, 1.0, 0.5, 0.1]],
            [[0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]],
        ]
    )
    covered = log_mel(n_mels=10).covered(spans, torch.tensor([8, 4]), 8)
    expected = torch.zeros(2, 8, 10, dtype=torch.bool)
    expected[0, 2:6] = True
    expected[0, :, 5] = True
    expected[1, :2, :5] = True
    assert torch.equal(covered[:, :4], expected[:, :4]) and torch.equal(covered[0], expected[0])


def test_spans_change_the_output_and_nothing_where_they_are_empty():
    frontend, signal, lengths = log_mel(), torch.randn(2, 4000), torch.tensor([4000, 3000])
    plain, _ = frontend(signal, lengths)
    assert torch.equal(plain, frontend(signal, lengths, torch.zeros(2, 3, 4))[0])
    assert not torch.equal(
        plain, frontend(signal, lengths, torch.tensor([[[0.2, 0.5, 0.2, 0.5]]] * 2))[0]
    )


def test_what_cannot_be_is_refused(monkeypatch):
    # else the hook of the tests refuses the word before the part does
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="normalize=batch is neither utterance nor global"):
        log_mel(normalize="batch")
    with pytest.raises(UserError, match="n_mels=3 must be at least 4"):
        log_mel(n_mels=3)
