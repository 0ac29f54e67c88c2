"""Frontends: features, normalisation, spans and frames of `log_mel`; vectors of `tokens`."""

import jaxtyping
import pytest
import torch
import torchaudio
from torch.testing import assert_close

from famx.frontend._spans import span_cells
from famx.notation import Modality, UserError
from famx.registry import build, get


def log_mel(**options):
    return build("frontend", {"name": "log_mel", **options}, d_model=8)


def test_modality_is_that_of_the_signal():
    assert get("frontend", "log_mel").modality is Modality.SPEECH
    assert get("frontend", "tokens").modality is Modality.TEXT


def test_features_are_torchaudios_log_mel_energies():
    original = torchaudio.transforms.MelSpectrogram(16_000, 512, 400, 160, center=False, n_mels=80)
    signal = torch.randn(2, 4000)
    x, lengths = log_mel().features(signal, torch.tensor([4000, 4000]))
    # torch.stft puts a window of 400 samples in the middle of 512
    energies = original(torch.nn.functional.pad(signal, (56, 200))).mT
    energies = energies[:, : x.shape[1]]
    expected = (energies / energies.mean((1, 2), keepdim=True) + 1e-6).log()
    assert_close(x, expected, rtol=1e-3, atol=1e-3)
    assert lengths.tolist() == [24, 24]


def test_features_do_not_depend_on_loudness():
    frontend = log_mel()
    signal = torch.randn(1, 4000) * torch.linspace(0, 1, 4000)
    loud, _ = frontend.features(signal, torch.tensor([4000]))
    quiet, _ = frontend.features(1e-3 * signal, torch.tensor([4000]))
    assert_close(loud, quiet, rtol=1e-3, atol=1e-3)


def test_every_sample_lies_in_a_window():
    frontend = log_mel()
    for size in (1, 399, 400, 401, 559, 560, 561, 720, 721):
        x, lengths = frontend.features(torch.ones(1, size), torch.tensor([size]))
        last_start = 160 * (lengths.item() - 1)
        assert x.shape[1] == lengths.item()
        assert last_start + 400 >= size
        assert last_start == 0 or last_start - 160 + 400 < size


def test_utterance_has_zero_mean_and_unit_variance_in_each_bin():
    x = 3 * torch.randn(2, 50, 80) + 7
    valid = torch.arange(50) < torch.tensor([50, 30])[:, None]
    y = log_mel().standardize(x, valid[..., None])[1, :30]
    assert_close(y.mean(0), torch.zeros(80), atol=1e-5, rtol=0)
    assert_close(y.var(0, correction=0), torch.ones(80), atol=1e-2, rtol=0)


def test_global_statistics_are_those_of_all_training_frames():
    frontend = log_mel(normalize="global")
    frames = []
    for size in (50, 20, 90):
        x = 3 * torch.randn(2, size, 80) + 7
        valid = torch.arange(size) < torch.tensor([size, 10])[:, None]
        frontend.standardize(x, valid[..., None])
        frames.append(x[valid])
    x = torch.cat(frames)
    frontend.eval()
    y = frontend.standardize(x[None], torch.ones(1, len(x), 1, dtype=torch.bool))[0]
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-2).sqrt()
    assert_close(y, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["log_mel", "waveform"])
def test_mean_over_the_frames_of_an_utterance_is_zero(name):
    frontend = build("frontend", {"name": name}, d_model=8).eval()
    if name == "log_mel":
        # without what the context adds
        torch.nn.init.zeros_(frontend.context.weight)
        torch.nn.init.zeros_(frontend.context.bias)
    x, lengths = frontend(torch.randn(2, 8000), torch.tensor([8000, 5000]))
    for frames, length in zip(x, lengths, strict=True):
        assert frames[:length].abs().mean() > 0.1
        assert_close(frames[:length].mean(0), torch.zeros(8), atol=1e-5, rtol=0)


def test_spans_cover_the_cells_whose_centres_they_contain():
    spans = torch.tensor(
        [
            [[0.25, 0.5, 0.0, 1.0], [0.0, 1.0, 0.5, 0.1]],
            [[0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]],
        ]
    )
    covered = span_cells(spans, torch.tensor([8, 4]), 8, 10)
    expected = torch.zeros(2, 8, 10, dtype=torch.bool)
    expected[0, 2:6] = True
    expected[0, :, 5] = True
    expected[1, :2, :5] = True
    assert torch.equal(covered[0], expected[0])
    # the second signal has 4 windows
    assert torch.equal(covered[1, :4], expected[1, :4])


def test_spans_change_the_output_unless_they_are_empty():
    frontend = log_mel()
    signal = torch.randn(2, 4000)
    lengths = torch.tensor([4000, 3000])
    expected, _ = frontend(signal, lengths)
    empty, _ = frontend(signal, lengths, torch.zeros(2, 3, 4))
    assert torch.equal(expected, empty)
    masked, _ = frontend(signal, lengths, torch.tensor([[[0.2, 0.5, 0.2, 0.5]]] * 2))
    assert not torch.equal(expected, masked)


def test_tokens_are_looked_up():
    tokens = build("frontend", {"name": "tokens"}, d_model=8, vocab_size=5)
    ids = torch.tensor([[3, 0], [4, 4]])
    lengths = torch.tensor([2, 1])
    x, n_frames = tokens(ids, lengths)
    assert torch.equal(x, tokens.weight[ids])
    assert torch.equal(n_frames, lengths) and torch.equal(tokens.n_frames(lengths), lengths)


def test_invalid_options_are_refused(monkeypatch):
    # the type checks of the tests would refuse the word before the part does
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="normalize=batch is neither utterance nor global"):
        log_mel(normalize="batch")
    with pytest.raises(UserError, match="n_mels=3 must be between 4 and 4,096"):
        log_mel(n_mels=3)
    with pytest.raises(UserError, match="context=4 must be odd"):
        log_mel(context=4)


def test_token_context_adds_the_neighbours_of_each_token():
    frontend = build("frontend", {"name": "token_context", "context": 3}, d_model=8, vocab_size=9)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    y, _ = frontend(tokens, torch.tensor([5]))
    changed = tokens.clone()
    changed[0, 4] = 6
    other, _ = frontend(changed, torch.tensor([5]))
    # of a token, the one before it and the one after it
    assert (y - other).abs().amax(-1)[0].gt(0).tolist() == [False, False, False, True, True]


def test_each_channel_of_token_context_sees_all_channels_of_the_neighbours():
    frontend = build("frontend", {"name": "token_context", "context": 3}, d_model=16, vocab_size=9)
    y, _ = frontend(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    y[0, 1, 0].backward()
    gradient = frontend.tokens.weight.grad
    assert gradient[[1, 3]].ne(0).all()


@pytest.mark.parametrize("name", ["tokens", "token_context"])
def test_dropout_of_tokens_is_of_training_alone(name):
    options = {"name": name, "dropout": 0.5, "token_dropout": 0.5}
    frontend = build("frontend", options, d_model=64, vocab_size=9)
    tokens = torch.ones(1, 400, dtype=torch.long)
    embedding = frontend if name == "tokens" else frontend.tokens
    x, _ = embedding(tokens, torch.tensor([400]))
    is_zero = x[0] == 0
    assert is_zero.all(-1).float().mean().item() == pytest.approx(0.5, abs=0.1)
    # the others are scaled, so that their mean stays
    assert is_zero.float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert x.mean(1)[0].div(embedding.weight[1]).median().item() == pytest.approx(1, abs=0.2)
    frontend.eval()
    y, _ = embedding(tokens, torch.tensor([400]))
    assert torch.equal(y[0, 0], embedding.weight[1]) and torch.equal(y[0, 0], y[0, 399])


def test_tokens_without_dropout_draw_no_random_numbers():
    frontend = build("frontend", {"name": "tokens"}, d_model=8, vocab_size=9)
    state = torch.get_rng_state()
    frontend(torch.ones(1, 4, dtype=torch.long), torch.tensor([4]))
    assert torch.equal(state, torch.get_rng_state())
