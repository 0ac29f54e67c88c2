"""Folders of pretrained models: what is read of them, and those that cannot be used."""

import json
import shutil
import sys

import pytest
import torch
import transformers
from pretrained_models import WHISPER, loaded, write_model
from safetensors.torch import load_file, save_file
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from famx.notation import UserError
from famx.registry import PARTS


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("wav2vec2", "Wav2Vec2ForCTC"),
        ("wav2vec2", "Wav2Vec2ForPreTraining"),
        ("hubert", "HubertForCTC"),
        ("whisper", "WhisperForConditionalGeneration"),
        ("whisper", "WhisperForAudioClassification"),
    ],
)
def test_heads_and_decoders_are_left_out(name, head, tmp_path):
    model = write_model(tmp_path, name, head)
    base = model.model if hasattr(model, "model") else getattr(model, name, model)
    encoder = getattr(base, "encoder", base) if name == "whisper" else base
    weights = loaded(tmp_path, name).encoder.state_dict()
    assert {*weights} == {*encoder.state_dict()}
    for key, value in encoder.state_dict().items():
        assert torch.equal(weights[key], value), key


def test_old_names_shards_and_half_precision_are_read(tmp_path):
    model = write_model(tmp_path / "new", "wav2vec2")
    expected = model.state_dict()
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    weights = load_file(tmp_path / "old" / "model.safetensors")
    conv = "encoder.pos_conv_embed.conv"
    for i, name in enumerate(("weight_g", "weight_v")):
        weights[f"{conv}.{name}"] = weights.pop(f"{conv}.parametrizations.weight.original{i}")
    # models that were trained further have no mask
    del weights["masked_spec_embed"]
    save_file(weights, tmp_path / "old" / "model.safetensors")
    for folder in ("shards", "old"):
        encoder = loaded(tmp_path / folder, "wav2vec2").encoder
        for key, value in encoder.state_dict().items():
            is_absent = folder == "old" and key == "masked_spec_embed"
            assert torch.equal(value, 0 * value if is_absent else expected[key]), key
    model.half().save_pretrained(tmp_path / "half")
    for p in loaded(tmp_path / "half", "wav2vec2").encoder.parameters():
        assert p.dtype == torch.float32


def test_an_encoder_alone_is_read(tmp_path):
    config = transformers.WhisperConfig(**WHISPER)
    encoder = WhisperEncoder(config)
    encoder.save_pretrained(tmp_path)
    for key, value in loaded(tmp_path, "whisper").encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])


def edit(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def remove_weights(folder, *beginnings):
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({key: x for key, x in weights.items() if not key.startswith(beginnings)}, file)


MISTAKES = {
    "no folder": (lambda folder: shutil.rmtree(folder), r"is no folder$"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "bad config": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), "holds a list, not an obj"),
    "wrong value": (lambda folder: edit(folder, hidden_size="x"), "config.json cannot be used: "),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "no weights: there is no model.safetensors",
    ),
    "pickled": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "has its weights in pytorch_model.bin, which can run code, and only model.safetensors",
    ),
    "cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:5000]
        ),
        "are damaged or incomplete: ",
    ),
    "empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "are damaged or incomplete: ",
    ),
    "more layers": (
        lambda folder: edit(folder, num_hidden_layers=3),
        r"the first missing weight is encoder\.layers\.2\.attention\.k_proj\.bias$",
    ),
    "fewer layers": (
        lambda folder: edit(folder, num_hidden_layers=1),
        r"the first unexpected one is encoder\.layers\.1\.attention\.k_proj\.bias$",
    ),
    "other sizes": (
        lambda folder: edit(folder, intermediate_size=32),
        r"intermediate_dense\.bias is \(24,\) there, \(32,\) by config\.json$",
    ),
    "no projection": (
        lambda folder: remove_weights(folder, "masked_spec_embed", "feature_projection"),
        r"first missing weight is feature_projection\.layer_norm\.bias$",
    ),
    "other norm": (
        lambda folder: edit(folder, feat_extract_norm="layer"),
        r"first missing weight is feature_extractor\.conv_layers\.1\.layer_norm\.bias$",
    ),
    "hubert": (
        lambda folder: edit(folder, model_type="hubert"),
        "a model of type hubert, which frontend=hubert reads, not frontend=wav2vec2$",
    ),
    "other rate": (
        lambda folder: (folder / "preprocessor_config.json").write_text('{"sampling_rate": 8000}'),
        "is for signals of 8000 Hz, and those of famx have 16000",
    ),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_folder_that_cannot_be_used_is_one_sentence(mistake, tmp_path):
    folder = tmp_path / "model"
    write_model(folder, "wav2vec2")
    change, message = MISTAKES[mistake]
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        loaded(folder, "wav2vec2")
    assert "\n" not in str(error.value)


def test_a_model_of_another_kind_is_named_with_its_weights(tmp_path):
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="type bert, not wav2vec2: the first missing weight is "):
        loaded(tmp_path, "wav2vec2")
    with pytest.raises(UserError, match=r"the first unexpected one is embeddings\.LayerNorm"):
        loaded(tmp_path, "whisper")


def test_a_frontend_without_a_folder_says_what_it_needs():
    with pytest.raises(UserError, match=r"^frontend=hubert needs the folder .*frontend.path="):
        PARTS["frontend"]["hubert"].complete({"path": None})


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    write_model(tmp_path, "wav2vec2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers: pip install 'famx\["):
        loaded(tmp_path, "wav2vec2")


def test_no_network_is_used(monkeypatch, tmp_path):
    write_model(tmp_path, "wav2vec2")

    def refuse(*arguments):
        raise AssertionError("a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    loaded(tmp_path, "wav2vec2")
