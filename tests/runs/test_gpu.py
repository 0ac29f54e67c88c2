"""Runs on a GPU: graphs change no result, resuming is exact, and nothing waits for the device."""

import signal
import warnings

import pytest
import torch
from jaxtyping import config
from tones import reported_values, saved_weights, stopped_at, tones_config

from famx.experiment.run import run
from famx.registry import names
from famx.training.graphs import GraphedPasses
from famx.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

WORDS = ("trainer.device=cuda", "trainer.max_steps=50", "trainer.log_every=5", "loader.shapes=3")


@pytest.fixture(autouse=True)
def without_type_checks(monkeypatch):
    """Turns off beartype, which draws random numbers on the host in every call."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


def trained(corpus, folder, *words, **options):
    """Trains a run; returns the number of passes that were replayed."""
    replayed = []
    replay = GraphedPasses._replay

    def counted_replay(self, *args):
        replayed.append(1)
        return replay(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphedPasses, "_replay", counted_replay)
        run(tones_config(corpus, *WORDS, *words), folder, **options)
    return len(replayed)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_losses_with_graphs_equal_those_without(corpus, tmp_path, precision):
    words = (f"trainer.precision={precision}", "trainer.eval_every=25")
    assert trained(corpus, tmp_path / "graphs", *words) > 20
    assert trained(corpus, tmp_path / "eager", *words, "trainer.graphs=off") == 0
    for tag in ("train/loss", "train/grad_norm"):
        expected = reported_values(tmp_path / "eager", tag)
        for step, value in reported_values(tmp_path / "graphs", tag).items():
            assert value == pytest.approx(expected[step], rel=1e-2 if tag != "train/loss" else 1e-3)


@pytest.mark.parametrize("attention", names("attention"))
def test_each_block_trains_in_graphs(corpus, tmp_path, attention, caplog):
    words = (f"attention={attention}", "trainer.max_steps=25", "trainer.eval_every=25")
    replayed = trained(corpus, tmp_path / "graphs", *words)
    assert replayed > 5, caplog.messages
    trained(corpus, tmp_path / "eager", *words, "trainer.graphs=off")
    expected = reported_values(tmp_path / "eager", "train/loss")
    for step, value in reported_values(tmp_path / "graphs", "train/loss").items():
        assert value == pytest.approx(expected[step], rel=2e-2)


@pytest.mark.parametrize(
    "words",
    [
        ("optim=fam",),
        ("optim=fam_adamw", "trainer.accumulate=2"),
        # trained after the run has been stopped and resumed
        ("finetune.freeze=[frontend]", "finetune.freeze_steps=36", "finetune.layer_decay=.8"),
    ],
)
def test_resumed_run_equals_an_unbroken_one(corpus, tmp_path, words):
    trained(corpus, tmp_path / "unbroken", *words)
    with stopped_at(33, signal.SIGTERM):
        trained(corpus, tmp_path / "stopped", *words)
    trained(corpus, tmp_path / "stopped", *words, resume=True)
    expected = saved_weights(tmp_path / "unbroken")
    for name, value in saved_weights(tmp_path / "stopped").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("model", ["transformer", "myelinated", "conformer"])
def test_steps_between_reports_never_wait_for_the_gpu(corpus, tmp_path, model):
    train_step = Trainer.train_step
    places = []

    def checked_step(self, batches):
        # graphs are captured at first; the last step is reported
        if self.step < 40 or self.step == 49:
            return train_step(self, batches)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            train_step(self, batches)
            torch.cuda.set_sync_debug_mode("default")
        for warning in caught:
            if "called a synchronizing" in str(warning.message):
                places.append(f"{warning.filename}:{warning.lineno}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", checked_step)
        words = (f"model={model}", "optim=fam", "trainer.log_every=100", "trainer.eval_every=100")
        words += ("model.d_model=16", "model.n_heads=2")
        trained(corpus, tmp_path / "run", *words)
    assert not places
