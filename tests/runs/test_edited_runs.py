"""Runs whose files were edited or damaged: the first difference is named, with a way to go on."""

import hashlib
import json
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tones import reported_values, stopped_at, tones_config

import famx
from famx.experiment.run import run
from famx.monitoring.spectrum_log import SpectrumLog
from famx.notation import UserError
from famx.training import checkpoint
from famx.training.trainer import Trainer

WORDS = (
    *("trainer.max_steps=4", "trainer.eval_every=2", "trainer.tail_average=0"),
    *("probe=light", "optim=fam"),
)


@pytest.fixture(scope="module")
def finished_run(corpus, tmp_path_factory):
    """Returns the folder of a run with a single checkpoint, which no test changes."""
    folder = tmp_path_factory.mktemp("edited") / "run"
    run(tones_config(corpus, *WORDS), folder)
    for path in folder.glob("checkpoints/step-*"):
        if path.name != "step-4":
            shutil.rmtree(path)
    return folder


@pytest.fixture
def folder(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def reseal(path):
    """Gives the manifest of a checkpoint the digests of its files as they are."""
    manifest = json.loads((path / "manifest.json").read_text())
    for file in path.iterdir():
        if file.name != "manifest.json":
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest[file.name] = {"size": len(content), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit_tensor(path, tree, name, edit):
    tensors = load_file(path / f"{tree}.safetensors")
    value = edit(tensors.pop(name))
    if value is not None:
        tensors[name] = value
    save_file(tensors, path / f"{tree}.safetensors")
    reseal(path)


def edit_value(path, keys, value):
    """Replaces a value of state.json, where a dict is a list of pairs."""
    state = json.loads((path / "state.json").read_text())
    *parents, last = keys
    node = state[parents.pop(0)]
    for key in [*parents, last]:
        ((kind, items),) = node.items()
        pairs = items if kind == "dict" else list(enumerate(items))
        pair = next(pair for pair in pairs if pair[0] == key)
        if key is last and kind == "dict":
            pair[1] = value
        elif key is last:
            items[key] = value
        node = pair[1]
    (path / "state.json").write_text(json.dumps(state))
    reseal(path)


def resume(folder, steps=6):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["max_steps"] = steps
    return run(config, folder, resume=True)


# the content of a checkpoint

TENSORS = {
    "missing": (lambda w: None, "the tensor score.weight is missing"),
    "of another shape": (lambda w: w.T.contiguous(), r"another model: score.weight is float32 \("),
    "of another dtype": (lambda w: w.half(), "another model: score.weight is float16"),
    "with a NaN": (lambda w: w * torch.nan, "model.score.weight is not finite"),
    "infinite": (lambda w: w + torch.inf, "weights that are not finite: score.weight"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensor_of_the_model_is_checked_on_resume_and_on_load(kind, folder):
    edit, message = TENSORS[kind]
    edit_tensor(folder / "checkpoints" / "step-4", "model", "score.weight", edit)
    with pytest.raises(UserError, match=message):
        resume(folder)
    with pytest.raises(UserError, match=message):
        famx.load(folder)


VALUES = {
    "trainer.epoch is str, int is expected": (("trainer", "epoch"), "one"),
    "trainer.position=-1 must be at least 0": (("trainer", "position"), -1),
    "trainer.seconds is not a number": (("trainer", "seconds"), float("nan")),
    "trainer.total_steps=0 must be at least 1": (("trainer", "total_steps"), 0),
    "trainer.loss_sum is int": (("trainer", "loss_sum"), 3),
    "trainer.interval.steps is float": (("trainer", "interval", "steps"), 1.5),
    "trainer.latest must hold numbers": (("trainer", "latest"), {"dict": [["a", "b"]]}),
    "random generators cannot be restored": (("trainer", "rng", "python", 1), {"tuple": [1]}),
    "an integer is required": (("trainer", "rng", "numpy", "pos"), "x"),
    "param_groups.0.lr is str": (("optimizer", "param_groups", 0, "lr"), "0.1"),
    "param_groups.0.initial_lr": (("optimizer", "param_groups", 0, "initial_lr"), None),
    "optimizer cannot be restored": (("optimizer", "state"), {"list": [1]}),
    "probe.n_steps is str": (("probe", "n_steps"), "x"),
}


@pytest.mark.parametrize("message", VALUES)
def test_value_of_the_state_is_checked_on_resume(message, folder):
    edit_value(folder / "checkpoints" / "step-4", *VALUES[message])
    with pytest.raises(UserError, match=message):
        resume(folder)


@pytest.mark.parametrize("tree", ["model", "optimizer", "trainer"])
def test_missing_tree_of_the_state_is_reported(tree, folder):
    path = folder / "checkpoints" / "step-4"
    state = json.loads((path / "state.json").read_text())
    del state[tree]
    (path / "state.json").write_text(json.dumps(state))
    reseal(path)
    with pytest.raises(UserError, match=r"checkpoint without weights|has no part"):
        resume(folder)


# files of the run


@pytest.mark.parametrize("file", ["config.yaml", "tokenizer.json"])
def test_edited_file_of_a_run_is_reported_with_a_way_to_go_on(file, folder, command):
    path = folder / file
    text = path.read_text()
    # an edit that everything else accepts
    path.write_text(text.replace("seed: 0", "seed: 1") if file == "config.yaml" else text + "\n")
    longer = ("train", f"resume={folder}", "trainer.max_steps=5")
    for words in (longer, ("evaluate", folder), ("transcribe", folder, "a.wav")):
        finished = command(*words)
        assert finished.status == 2
        assert f"{file} has changed since the run's checkpoints were saved" in finished.sentence
    with pytest.raises(UserError, match="has changed since"):
        famx.load(folder)
    famx.load(folder, trust_edits=True)
    assert command("evaluate", folder, "--trust-edits").status == 0
    # from then on the edited file is the one of the run
    finished = command(*longer, "trust_edits=true")
    assert finished.status == 0, finished.err
    assert command("evaluate", folder).status == 0


def test_edited_learning_rate_is_used_if_edits_are_trusted(folder, monkeypatch):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["optim"]["lr"] = 0.125
    config["trainer"]["max_steps"] = 5
    rates = []
    train_step = Trainer.train_step

    def train_step_with_rate(self, batches):
        rates.append(self.optimizer.param_groups[0]["initial_lr"])
        train_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step_with_rate)
    run(config, folder, resume=True, trust_edits=True)
    assert rates == [0.125]


def test_damaged_log_is_continued_with_a_warning_and_a_copy(folder, caplog):
    file = folder / "metrics.jsonl"
    content = file.read_bytes()
    damaged = content.replace(b'"step": 2', b'"step": \xff', 1)
    assert damaged != content
    file.write_bytes(damaged)
    resume(folder)
    assert "metrics.jsonl differs from the file that was saved with step 4" in caplog.text
    assert (folder / "metrics.damaged.jsonl").read_bytes() == damaged
    assert list(reported_values(folder, "train/loss")) == [4, 6]


def test_flipped_bit_of_the_probe_is_reported_and_a_copy_remains(caplog, tmp_path):
    names = ["a", "b"]
    log = SpectrumLog(tmp_path / "spectrum.parquet", names, ["conv", "norm"])
    for step in (2, 4):
        bands = torch.rand(2, 4)
        log.add(step, {"bands": bands, "whiteness": torch.tensor([0.5, torch.nan])})
    log.write()
    content = log.file.read_bytes()
    reopened = SpectrumLog(log.file, names, ["conv", "norm"], step=2)
    assert list(reopened.reports) == [2]
    assert not caplog.records
    n_accepted = 0
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        log.file.write_bytes(flipped)
        reports = SpectrumLog(log.file, names, ["conv", "norm"], step=4).reports
        # a flip in what nobody reads is harmless; otherwise a copy remains
        if reports:
            n_accepted += 1
            assert reports[4]["bands"].equal(log.reports[4]["bands"])
        else:
            assert (tmp_path / "spectrum.damaged.parquet").read_bytes() == flipped
    assert "spectrum.parquet is damaged and will be replaced, a copy is" in caplog.text
    assert n_accepted < len(range(0, len(content), 7)) / 2


def test_undamaged_run_resumes_without_a_warning(folder, caplog):
    resume(folder)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    # short random texts may occur in two splits
    assert not [warning for warning in warnings if "are in train too" not in warning]


# signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_of_terminals_and_of_slurm_end_a_run_saved(number, corpus, tmp_path):
    with stopped_at(1, number):
        assert run(tones_config(corpus, *WORDS), tmp_path / "run")["stopped_by"] == number
    assert checkpoint.load(tmp_path / "run" / "checkpoints")["step"] == 1


def test_signal_before_the_first_step_of_a_resumed_run_leaves_its_score(folder, monkeypatch):
    score = checkpoint.load(folder / "checkpoints")["score"]
    assert score is not None
    restored = Trainer.load_state_dict

    def load_and_stop(self, saved, trust_edits=False):
        restored(self, saved, trust_edits)
        self.stopped_by = int(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "load_state_dict", load_and_stop)
    assert resume(folder)["stopped_by"] == signal.SIGTERM
    saved = checkpoint.load(folder / "checkpoints")
    assert (saved["step"], saved["score"]) == (4, score)
