"""Runs that begin with a pretrained encoder, whose folder they need only at their start."""

import shutil
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tones import saved_weights, stopped_at, tones_config, tones_words
from torch.testing import assert_close

import famx
from famx.experiment.run import run
from famx.training.run_dir import RunDir

pytestmark = pytest.mark.slow
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 8),
    "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
ENCODER = "frontend.encoder."


@pytest.fixture
def pretrained(tmp_path):
    """Returns the folder of a random model of the library."""
    folder = tmp_path / "pretrained"
    config = transformers.Wav2Vec2Config(**SIZES)
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    return folder


def words_of(corpus, pretrained, *words):
    """Returns the command line of a tiny run with the pretrained encoder."""
    others = [word for word in tones_words(corpus) if not word.startswith("frontend")]
    return [*others, "frontend=wav2vec2", f"frontend.path={pretrained}", *words]


def config_of(corpus, pretrained, frozen):
    config = tones_config(corpus, "task.consistency=0.2")
    frontend = {"name": "wav2vec2", "path": str(pretrained), "frozen": frozen}
    return config | {"frontend": frontend}


@pytest.mark.parametrize("frozen", [True, False])
def test_resumed_run_equals_an_unbroken_one_and_needs_no_folder(
    frozen, corpus, pretrained, tmp_path
):
    initial = load_file(pretrained / "model.safetensors")
    config = config_of(corpus, pretrained, frozen)
    run(config, tmp_path / "unbroken")
    with stopped_at(4, signal.SIGTERM):
        run(config, tmp_path / "stopped")
    shutil.rmtree(pretrained)
    # the stored config has the architecture
    stored = RunDir(tmp_path / "stopped").load_config()
    run(stored, tmp_path / "stopped", resume=True)
    weights = saved_weights(tmp_path / "unbroken")
    resumed = saved_weights(tmp_path / "stopped")
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed[name]), name
    # the mask of frames is trained by no run
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith(ENCODER)}
    changed = {
        name.removeprefix(ENCODER)
        for name, tensor in encoder.items()
        if not torch.equal(tensor, initial[name.removeprefix(ENCODER)])
    }
    assert changed == (set() if frozen else {*initial} - {"masked_spec_embed"})


def test_a_run_is_used_and_exported_without_the_folder(command, corpus, pretrained, tmp_path):
    folder = tmp_path / "run"
    words = words_of(corpus, pretrained, f"hydra.run.dir={folder}")
    done = command("train", *words)
    assert done.status == 0, done.err
    assert f"weights of {pretrained}: loaded " in (folder / "famx.log").read_text()
    shutil.rmtree(pretrained)
    assert command("evaluate", folder).status == 0
    # in a process of its own, since checks of types cannot be traced
    export = [sys.executable, "-m", "famx.export", folder, "--to", tmp_path / "export"]
    finished = subprocess.run(export, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert str(tmp_path) not in (tmp_path / "export" / "config.yaml").read_text()
    files = [corpus / "test0.wav", corpus / "test1.wav"]
    published = famx.load(tmp_path / "export")
    assert published.transcribe(files) == famx.load(folder).transcribe(files)
    # the program of the model
    program = torch.export.load(tmp_path / "export" / "program.pt2").module()
    noise = 0.1 * torch.randn(2, 20_000)
    lengths = torch.tensor([20_000, 17_000])
    scores, n_frames = program(noise, lengths)
    expected, _ = published.experiment.model(noise, lengths)
    assert_close(scores[1, : n_frames[1]], expected[1, : n_frames[1]], atol=1e-4, rtol=1e-4)
    # but a new run has nothing to begin with
    again = command("train", *words[:-1], f"hydra.run.dir={tmp_path / 'again'}")
    assert again.status == 2
    assert again.sentence == f"famx: frontend.path={pretrained} is no folder"
    assert command("replay", folder).status == 2


def test_a_path_may_be_relative_and_the_encoder_may_be_frozen_for_some_steps(
    command, corpus, pretrained, tmp_path
):
    words = words_of(
        corpus,
        pretrained.name,
        "frontend.frozen=false",
        "finetune.freeze=[frontend.encoder]",
        "finetune.freeze_steps=[3]",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    done = command("train", *words)
    assert done.status == 0, done.err
    initial = load_file(pretrained / "model.safetensors")
    for name, tensor in saved_weights(tmp_path / "run").items():
        if name.startswith(ENCODER) and "masked_spec_embed" not in name:
            assert not torch.equal(tensor, initial[name.removeprefix(ENCODER)]), name
