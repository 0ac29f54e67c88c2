"""One step of the trainer, by hand: what it takes of each batch, and what it tells the parts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from famx.training.evaluate import evaluate
from famx.training.trainer import Trainer, TrainerConfig


class Weight(nn.Module):
    """A weight that costs something and wants to hear of the loss."""

    def __init__(self):
        super().__init__()
        self.weight, self.heard = nn.Parameter(torch.ones(3)), []

    def penalty(self):
        return 0.7 * self.weight.sum()

    def after_step(self, loss):
        self.heard.append(loss.item())


class Task:
    """The mean of `w * x` over all numbers of a batch."""

    unit = "seconds"
    metric = "loss"

    def count(self, batch):
        return batch.inputs.numel()

    def loss(self, model, batch):
        return (model.weight * batch.inputs).mean()


def batch(rows):
    found = SimpleNamespace(
        inputs=torch.randn(rows, 3), ids=["a"] * rows, texts=[], seconds=1.0, padding=0.0
    )
    found.shard, found.to = lambda rank, world: found, lambda device: found
    return found


def test_a_step_is_that_of_all_its_batches_at_once_with_its_penalties_paid_and_the_loss_told(
    tmp_path,
):
    model, task = Weight(), Task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    config = TrainerConfig(max_steps=9, accumulate=2, clip=1e9, ema=0.75)
    built = (
        model,
        task,
        optimizer,
        lambda total: lambda step: 0.1 * (step + 1),
        lambda *_: iter(()),
        lambda: iter(()),
    )
    trainer = Trainer(*built, lambda *_: 0, tmp_path, config, torch.device("cpu"))
    weight = averaged = torch.ones(3)
    for step in range(3):
        batches = [batch(1), batch(5)]
        whole = torch.cat([each.inputs for each in batches])
        loss = (weight * whole).mean()
        weight = weight - 0.05 * (step + 1) * (whole.mean(0) / 3 + 0.7)
        averaged = weight if step == 0 else 0.75 * averaged + 0.25 * weight
        trainer._train(batches)
        assert model.heard[step] == pytest.approx(loss.item(), abs=1e-6)
        torch.testing.assert_close(model.weight.data, weight)
        torch.testing.assert_close(trainer.averaged.module.weight.data, averaged)


def test_what_is_evaluated_is_the_model_without_its_dropout():
    model = nn.Sequential(nn.Dropout(0.5)).train()
    model.weight = nn.Parameter(torch.ones(3))
    task, batches = Task(), [batch(1), batch(5)]
    task.judge = lambda model, batch: (model(model.weight * batch.inputs).mean(), [])
    found = evaluate(model, task, batches, torch.device("cpu"))
    assert found.loss == pytest.approx(
        torch.cat([each.inputs for each in batches]).mean().item(), abs=1e-6
    )
