"""Pretrained encoders give the frames of transformers, alone and in a batch."""

import numpy as np
import pytest
import torch
import transformers
from pretrained_models import MODELS, SMALL, loaded, write_model
from safetensors.torch import load_file
from torch.testing import assert_close

from famx.frontend._convolved import norm_over_time
from famx.notation import UserError
from famx.optim import parameter_groups
from famx.registry import PARTS, build

LENGTHS = (4000, 2345, 700, 1)
PUBLISHED = {
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}


@pytest.fixture
def signals():
    signal = 0.1 * torch.randn(len(LENGTHS), max(LENGTHS)) + 0.02
    return signal, torch.tensor(LENGTHS)


def expected_frames(model, name, signal):
    """Returns the library's frames of one utterance, prepared by its feature extractor."""
    if name == "whisper":
        extract = transformers.WhisperFeatureExtractor()
        mel = extract(signal.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
        x = model.encoder(mel).last_hidden_state[0]
        return x[: -(-len(signal) // 320)]
    extract = transformers.Wav2Vec2FeatureExtractor()
    values = extract(signal.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    return model(values).last_hidden_state[0]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_frames_in_a_batch_are_those_of_the_library_alone(name, signals, tmp_path):
    model = write_model(tmp_path, name)
    frontend = loaded(tmp_path, name)
    signal, lengths = signals
    with torch.no_grad():
        y, n_frames = frontend(signal, lengths)
        for row, length in enumerate(LENGTHS[:3]):
            x = expected_frames(model, name, signal[row, :length])
            assert len(x) == n_frames[row]
            assert_close(y[row, : len(x)], frontend.out(x), atol=1e-4, rtol=1e-4)
    assert_close(frontend.n_frames(lengths), n_frames)


def test_published_sizes_have_frames_of_20_ms(tmp_path):
    frontend = build("frontend", {"name": "wav2vec2", "architecture": SMALL | PUBLISHED}, d_model=6)
    assert frontend.width == 400
    lengths = torch.tensor([1, 400, 719, 720, 16_000])
    assert frontend.n_frames(lengths).tolist() == [1, 1, 1, 2, 49]


def test_norm_over_time_is_a_group_norm_without_padding():
    norm = torch.nn.GroupNorm(6, 6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 3 * torch.randn(2, 6, 50) + 1
    y = norm_over_time(x, torch.tensor([50, 30]), norm)
    assert_close(y[0], norm(x)[0], atol=1e-5, rtol=1e-5)
    assert_close(y[1, :, :30], norm(x[1:, :, :30])[0], atol=1e-5, rtol=1e-5)


def test_signals_are_as_loud_as_they_are_where_the_folder_says_so(tmp_path, signals):
    model = write_model(tmp_path, "wav2vec2-layer")
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    frontend = loaded(tmp_path, "wav2vec2")
    signal = signals[0][:1]
    with torch.no_grad():
        y, _ = frontend(signal, torch.tensor([4000]))
        x = model(signal).last_hidden_state
        assert_close(y, frontend.out(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_spectrograms_are_those_of_whisper(n_mels):
    architecture = PARTS["frontend"]["whisper"].example()["architecture"]
    config = {"name": "whisper", "architecture": architecture | {"num_mel_bins": n_mels}}
    frontend = build("frontend", config, d_model=6)
    signal = (0.1 * np.random.default_rng(0).standard_normal(480_000)).astype(np.float32)
    signal[100_000:] = 0
    extract = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    expected = extract(signal, sampling_rate=16_000, return_tensors="pt").input_features
    assert_close(frontend.log_mel(torch.from_numpy(signal)[None]).mT, expected, atol=1e-4, rtol=0)


def test_a_long_signal_passes_whisper_in_pieces(tmp_path):
    write_model(tmp_path, "whisper")
    frontend = loaded(tmp_path, "whisper", seconds=1.0)
    signal = 0.1 * torch.randn(1, 40_000)
    y, lengths = frontend(signal, torch.tensor([40_000]))
    assert lengths.tolist() == [125]
    pieces = [frontend(part, torch.tensor([part.shape[1]]))[0] for part in signal.split(16_000, 1)]
    assert_close(y, torch.cat(pieces, 1))
    # the first embeddings of positions
    weights = load_file(tmp_path / "model.safetensors")["encoder.embed_positions.weight"]
    assert torch.equal(frontend.encoder.embed_positions.weight, weights[:50])


@pytest.mark.parametrize("seconds", [-1.0, 0.5, 31.0])
def test_whisper_has_pieces_of_1_to_30_seconds(seconds):
    options = PARTS["frontend"]["whisper"].example() | {"seconds": seconds}
    with pytest.raises(UserError, match=rf"seconds={seconds} must be between 1 and 30"):
        build("frontend", {"name": "whisper", **options}, d_model=6)


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_spans_blank_frames_and_bands(name):
    frontend = build("frontend", {"name": name, **PARTS["frontend"][name].example()}, d_model=6)
    frontend.eval()
    signal = 0.1 * torch.randn(2, 8000)
    lengths = torch.tensor([8000, 6000])
    inputs_of = []
    inner = frontend.encoder if name == "whisper" else frontend.encoder.encoder.pos_conv_embed
    inner.register_forward_pre_hook(lambda module, inputs: inputs_of.append(inputs[0]))

    def features(spans):
        frontend(signal, lengths, spans)
        x = inputs_of.pop()
        return x.mT if name == "whisper" else x

    plain = features(None)
    assert torch.equal(features(torch.zeros(2, 1, 4)), plain)
    time = features(torch.tensor([[[0.25, 0.5, 0.0, 1.0]]] * 2))
    band = features(torch.tensor([[[0.0, 1.0, 0.0, 0.25]]] * 2))
    blank = torch.zeros(()) if name == "whisper" else frontend.encoder.masked_spec_embed
    per_frame = 160 if name == "whisper" else 20
    for row, length in enumerate(lengths.tolist()):
        n = frontend.n_frames(lengths)[row] if name == "wav2vec2" else length // per_frame
        inside = slice(-(-n // 4) + 1, 3 * n // 4 - 1)
        assert_close(time[row, inside], blank.expand_as(time[row, inside]))
        assert torch.equal(time[row, : n // 4 - 1], plain[row, : n // 4 - 1])
        n_bands = plain.shape[2] // 4
        assert not band[row, :n, :n_bands].any()
        assert torch.equal(band[row, :n, n_bands:], plain[row, :n, n_bands:])


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "whisper"])
def test_a_frozen_encoder_is_not_trained_and_has_no_dropout(name):
    options = PARTS["frontend"][name].example() | {"frozen": True}
    frontend = build("frontend", {"name": name, **options}, d_model=6)
    signal = 0.1 * torch.randn(1, 4000)
    lengths = torch.tensor([4000])
    # as it is built, and after a change of the mode
    for _ in range(2):
        assert frontend.training and not frontend.encoder.training
        first, second = (frontend(signal, lengths)[0] for _ in range(2))
        assert torch.equal(first, second)
        frontend.eval().train()
    first.sum().backward()
    with_gradient = {name for name, p in frontend.named_parameters() if p.grad is not None}
    assert with_gradient == {"out.weight", "out.bias"}
    trained = [p for group in parameter_groups(frontend) for p in group["params"]]
    assert {*trained} == {*frontend.out.parameters()}


def test_a_trained_encoder_has_the_dropout_of_its_config(tmp_path):
    write_model(tmp_path, "wav2vec2")
    frontend = loaded(tmp_path, "wav2vec2", frozen=False).train()
    signal = 0.1 * torch.randn(1, 4000)
    first, second = (frontend(signal, torch.tensor([4000]))[0] for _ in range(2))
    assert not torch.equal(first, second)
