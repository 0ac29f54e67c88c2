"""One step of the trainer equals the same step written by hand."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from famx.data._tokenizers import byte_tokenizer
from famx.nn.batch import Batch
from famx.notation import Modality
from famx.task.base import Task
from famx.training.evaluate import evaluate
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig


class Weight(nn.Module):
    """A weight with a penalty, which records the losses that it learns from."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.losses = []

    def penalty(self):
        return 0.7 * self.weight.sum()

    def after_step(self, loss):
        self.losses.append(loss.item())


class MeanProduct(Task):
    """The mean of `w * x` over all numbers of a batch."""

    modality = Modality.SPEECH
    causal = False
    output = "frames"
    selection_metric = "loss"
    default_parts = {}  # noqa: RUF012

    def __init__(self):
        super().__init__(byte_tokenizer(), decoder=lambda model, batch: [])

    def count(self, batch):
        return batch.inputs.numel()

    def loss(self, model, batch):
        return (model.weight * batch.inputs).mean()

    def evaluate_batch(self, model, batch):
        return model(model.weight * batch.inputs).mean(), []


def random_batch(rows):
    return Batch(
        ids=["a"] * rows,
        texts=[""] * rows,
        inputs=torch.randn(rows, 3),
        lengths=torch.full((rows,), 3),
        targets=torch.zeros(rows, 0, dtype=torch.long),
        target_lengths=torch.zeros(rows, dtype=torch.long),
        spans=None,
        modality=Modality.SPEECH,
    )


def build_trainer(model, task, seed_for=lambda *_: 0, **options):
    """Returns a trainer by plain gradient descent, whose learning rate is 0.05 (step + 1)."""
    return Trainer(
        model=model,
        task=task,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        schedule=rising_schedule,
        batches=no_batches,
        seed_for=seed_for,
        config=TrainerConfig(max_steps=9, **options),
        device=torch.device("cpu"),
    )


def fetched(trainer, *batches):
    return list(trainer.gradients.prefetch((0, i, batch) for i, batch in enumerate(batches)))


def rising_schedule(total_steps):
    return lambda step: 0.1 * (step + 1)


def no_batches(epoch, position):
    return iter(())


def test_step_equals_gradient_descent_on_all_its_batches_with_penalties_and_averaging():
    model = Weight()
    trainer = build_trainer(model, MeanProduct(), accumulate=2, unit_clip=1e9, ema=0.75)
    weight = torch.ones(3)
    averaged = weight
    for step in range(3):
        batches = [random_batch(1), random_batch(5)]
        inputs = torch.cat([batch.inputs for batch in batches])
        loss = (weight * inputs).mean()
        # the gradient of the mean over all numbers, and of the penalty
        weight = weight - 0.05 * (step + 1) * (inputs.mean(0) / 3 + 0.7)
        averaged = weight if step == 0 else 0.75 * averaged + 0.25 * weight
        trainer.train_step(fetched(trainer, *batches))
        assert model.losses[step] == pytest.approx(loss.item(), abs=1e-6)
        torch.testing.assert_close(model.weight.data, weight)
        torch.testing.assert_close(trainer.averaged.module.weight.data, averaged)


def test_generators_of_torch_numpy_and_python_are_seeded_in_every_step():
    samples = []

    class DrawsNumbers(MeanProduct):
        def loss(self, model, batch):
            samples.append((torch.rand(()).item(), np.random.rand(), random.random()))
            return super().loss(model, batch)

    def seed_for(purpose, step, *_):
        return 100 + step

    for _ in range(2):
        trainer = build_trainer(Weight(), DrawsNumbers(), seed_for)
        for _ in range(2):
            trainer.train_step(fetched(trainer, random_batch(2)))
    # equal in equal steps, and different in successive ones
    assert samples[:2] == samples[2:]
    assert all(a != b for a, b in zip(samples[0], samples[1], strict=True))


def test_evaluation_uses_the_model_without_dropout():
    model = nn.Sequential(nn.Dropout(0.5)).train()
    model.weight = nn.Parameter(torch.ones(3))
    batches = [random_batch(1), random_batch(5)]
    evaluation = evaluate(model, MeanProduct(), batches, torch.device("cpu"))
    mean = torch.cat([batch.inputs for batch in batches]).mean().item()
    assert evaluation.loss == pytest.approx(mean, abs=1e-6)
