"""Runs that are exported as one folder."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from tones import tones_words

import famx
from famx.data._audio import read_audio
from famx.experiment.publication import paths_of, without_paths

pytestmark = pytest.mark.slow


# a normalisation with a number that no trace knows
PART = '''"""Divides by the largest magnitude."""

from torch import nn

from famx.registry import register


@register("norm")
class Largest(nn.Module):
    """y = x / max |x|"""

    def __init__(self, d_model: int):
        super().__init__()

    def forward(self, x):
        largest = float(x.detach().abs().max())
        return x / largest if largest else x
'''


def export(*words):
    """Runs the command in a process of its own, since checks of types cannot be traced."""
    command = [sys.executable, "-m", "famx.export", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def trained(command, corpus):
    """Trains a run in the folder `run` of the current one."""
    finished = command("train", *tones_words(corpus, "hydra.run.dir=run"))
    assert finished.status == 0, finished.err


def test_exported_folder_gives_the_scores_and_texts_of_the_run(command, trained, corpus, tmp_path):
    finished = export("run", "--to", "out")
    assert finished.returncode == 0, finished.stderr
    run = famx.load("run")
    # the run itself is not needed any more
    shutil.move("run", "moved")
    exported = famx.load("out")
    recording = corpus / "test0.wav"
    assert exported.transcribe(recording) == run.transcribe(recording)
    scored = command("evaluate", "out", f"data.root={corpus}")
    assert scored.status == 0, scored.err
    again = json.loads(next(tmp_path.glob("out/scores.test.manifest*.json")).read_text())
    scores = json.loads((tmp_path / "out/scores.test.json").read_text())
    assert again["wer"] == scores["wer"]
    # the card has the numbers of the scores
    card = (tmp_path / "out/README.md").read_text()
    assert f"| test | wer | {100 * scores['wer']['rate']:.2f} % |" in card
    assert "data.root=PATH" in card


def test_exported_folder_tells_nothing_of_the_machine(command, trained, corpus, tmp_path):
    assert command("export", "run", "--to", "out", "--no-program").status == 0
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert config["data"]["root"] == corpus.name
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            assert str(corpus.parent).encode() not in file.read_bytes(), file
    names = {file.name for file in (tmp_path / "out").rglob("*.safetensors")}
    assert names == {"model.safetensors"}


def test_program_holds_no_path_of_the_source(command, trained, tmp_path):
    finished = export("run", "--to", "out")
    assert finished.returncode == 0, finished.stderr
    with zipfile.ZipFile(tmp_path / "out/program.pt2") as archive:
        for name in archive.namelist():
            assert str(Path(famx.__file__).parent).encode() not in archive.read(name), name


def test_data_set_of_the_hub_remains_named(command, trained, tmp_path):
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    hub = {"name": "hub", "path": "owner/corpus@v1"}
    assert without_paths(config | {"data": hub})["data"] == hub
    assert paths_of("data", hub) == []
    assert without_paths(config | {"data": hub | {"path": "/home/me/corpus"}})["data"] == {
        "name": "hub",
        "path": "corpus",
    }


def test_folders_of_the_loader_are_names_in_what_is_exported(trained, tmp_path):
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    config["loader"]["noise"] = "/home/me/noise"
    assert without_paths(config)["loader"] == config["loader"] | {"noise": "noise"}


def test_program_gives_the_scores_of_the_model_for_any_batch_and_length(command, trained, corpus):
    assert export("run", "--to", "out").returncode == 0
    model = famx.load("run").experiment.model
    program = torch.export.load("out/program.pt2").module()
    signal = read_audio(corpus / "test0.wav")
    lengths = torch.tensor([len(signal), len(signal) // 2, 16_000])
    # a program takes at least a second
    inputs = torch.nn.functional.pad(signal, (0, 16_000)).repeat(3, 1)
    with torch.no_grad():
        scores, frames = model(inputs, lengths)
    program_scores, program_frames = program(inputs, lengths)
    assert torch.equal(program_frames, frames)
    for i, size in enumerate(frames):
        torch.testing.assert_close(program_scores[i, :size], scores[i, :size], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [("task=seq2seq", "model.decoder_layers=1"), ("task=transducer",)])
def test_card_says_what_the_program_of_a_text_decoder_holds(task, command, corpus, tmp_path):
    words = (*task, "decode=seq2seq_beam", "decode.beam=2")
    words = (*words, "trainer.max_steps=1", "hydra.run.dir=run")
    assert command("train", *tones_words(corpus, *words)).status == 0
    finished = export("run", "--to", "out")
    assert finished.returncode == 0, finished.stderr
    card = (tmp_path / "out/README.md").read_text()
    assert "`program.pt2`: `(inputs, lengths) -> (scores, lengths)`, without famx." in card
    assert "the decoder of texts is not in it" in card
    # the decoder of the scores, as it is typed
    assert "| decode=seq2seq_beam decode.beam=2 decode.ctc_weight=0.3 " in card
    assert "name=" not in card
    # a card names no program that is not there
    assert command("export", "run", "--to", "alone", "--no-program").status == 0
    assert "program.pt2" not in (tmp_path / "alone/README.md").read_text()


def test_model_that_is_no_program_is_exported_without_one(command, corpus, tmp_path):
    (tmp_path / "largest.py").write_text(PART)
    part_words = ("famx_parts=[largest.py]", "norm=largest")
    assert command("train", *tones_words(corpus, "hydra.run.dir=run", *part_words)).status == 0
    finished = export("run", "--to", "out", part_words[0])
    assert finished.returncode == 2
    assert finished.stderr.startswith("famx: torch.export cannot export this model: ")
    assert finished.stderr.endswith("else is exported: --no-program leaves it out\n")
    assert not (tmp_path / "out/program.pt2").exists()
    # the rest is complete, with the part
    copied = f"famx_parts=[{tmp_path}/out/largest.py]"
    assert command("evaluate", "out", f"data.root={corpus}", copied).status == 0
    assert "famx_parts=[largest.py]" in (tmp_path / "out/README.md").read_text()


def test_exported_run_names_the_option_of_its_data_and_does_not_go_on(
    command, trained, tmp_path, monkeypatch
):
    assert command("export", "run", "--to", "out", "--no-program").status == 0
    finished = command("evaluate", "out")
    assert finished.status == 2
    assert finished.sentence.endswith("test.tsv: data.root=DIR names the folder of it")
    finished = command("train", "resume=out", "trainer.max_steps=20")
    assert finished.status == 2
    assert finished.sentence.endswith("a new run starts from them by init_from=out")


def test_mistakes_are_refused_and_write_nothing(command, trained, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("x")
    for words, sentence in {
        ("run", "--to", "there"): "--to there exists: choose a new folder",
        ("nowhere", "--to", "out"): "nowhere is not a run: there is no such folder",
        ("run",): "the following arguments are required: --to",
        ("run", "--to", "out", "data.root=x"): "data.root=x cannot be set",
        ("run", "--to", "out", "--onnx", "--no-program"): "leave out --no-program",
    }.items():
        finished = command("export", *words)
        assert finished.status == 2
        assert sentence in finished.sentence
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]
