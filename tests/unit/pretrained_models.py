"""Small models of the library transformers with random weights, in folders, and as frontends."""

import transformers

from famx.registry import build

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 7,
}
# the forms of the large models: norms of channels, biases, layers that begin with their norm
LAYER = SMALL | {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
WHISPER = {
    "vocab_size": 20,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 80,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
MODELS = {
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model", SMALL),
    "wav2vec2-layer": ("Wav2Vec2Config", "Wav2Vec2Model", LAYER),
    "hubert": ("HubertConfig", "HubertModel", SMALL),
    "hubert-layer": (
        "HubertConfig",
        "HubertModel",
        LAYER | {"feat_proj_layer_norm": False},
    ),
    "whisper": ("WhisperConfig", "WhisperModel", WHISPER),
}


def write_model(folder, name, head=None):
    """Writes a random model of the library into a folder, and returns it in evaluation."""
    config_name, model_name, sizes = MODELS[name]
    config = getattr(transformers, config_name)(**sizes)
    model = getattr(transformers, head or model_name)(config).eval()
    model.save_pretrained(folder)
    return model


def loaded(folder, name, **options):
    """Returns a frontend with the weights of a folder, in evaluation."""
    config = {"name": name.partition("-")[0], "path": str(folder), **options}
    frontend = build("frontend", config, d_model=6)
    frontend.load_pretrained()
    return frontend.eval()
