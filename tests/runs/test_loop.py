"""One step of the trainer equals the same step written by hand."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from famx.data._tokenizers import byte_tokenizer
from famx.nn.batch import Batch
from famx.notation import Modality, UserError
from famx.task.base import Task
from famx.training.duration import plan_run
from famx.training.evaluate import evaluate
from famx.training.hooks import MAX_SKIPPED, StopOnDivergence
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig


class Weight(nn.Module):
    """A weight with a penalty, which records the losses that it learns from."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.losses = []
        self.register_buffer("n_losses", torch.tensor(0))

    def penalty(self):
        return 0.7 * self.weight.sum()

    def after_step(self, loss):
        self.losses.append(loss.item())
        self.n_losses += 1


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


def test_tail_average_is_the_mean_of_the_weights_after_the_last_steps():
    trainer = build_trainer(Weight(), MeanProduct(), tail_average=0.5)
    weights = []
    for step in range(1, 10):
        trainer.train_step(fetched(trainer, random_batch(2)))
        weights.append(trainer.model.weight.detach().clone())
        # buffers are those of the model after the step, also before there is an average
        assert trainer.averaged.module.n_losses == trainer.model.n_losses == step
        # the steps after half of nine are the last five
        if step <= 4:
            assert trainer.evaluated_model is trainer.model
        else:
            assert trainer.evaluated_model is trainer.averaged.module
            mean = torch.stack(weights[4:]).mean(0)
            torch.testing.assert_close(trainer.averaged.module.weight.data, mean)
    assert trainer.averaged.n_averaged == 5
    # more steps, of which the last ones begin later
    trainer.total_steps = 20
    trainer.train_step(fetched(trainer, random_batch(2)))
    assert trainer.evaluated_model is trainer.model


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


class Spoiled(MeanProduct):
    """A loss that is NaN in some steps."""

    def __init__(self, spoiled_steps):
        super().__init__()
        self.spoiled_steps = spoiled_steps
        self.step = 0

    def loss(self, model, batch):
        self.step += 1
        factor = torch.nan if self.step in self.spoiled_steps else 1.0
        return super().loss(model, batch) * factor


def test_step_whose_gradients_are_not_finite_is_counted_and_its_loss_is_not():
    model = Weight()
    trainer = build_trainer(model, Spoiled({2, 4}), unit_clip=1e9)
    # an optimizer that skips such steps
    trainer.optimizer.step = lambda: None
    losses = []
    for step in range(1, 5):
        batch = random_batch(2)
        trainer.train_step(fetched(trainer, batch))
        if step not in (2, 4):
            losses.append(batch.inputs.mean().item())
    assert trainer.loss_sum.item() == pytest.approx(sum(losses), abs=1e-6)
    assert (trainer.skipped.item(), trainer.skipped_in_row.item()) == (2, 1)
    # modules learn from the last loss that is finite
    assert model.losses[1] == model.losses[0]
    assert model.losses[3] == model.losses[2]


def test_many_steps_in_a_row_without_finite_gradients_end_the_run():
    trainer = build_trainer(Weight(), Spoiled(range(99)), unit_clip=1e9)
    trainer.optimizer.step = lambda: None
    hook = StopOnDivergence()
    trainer.is_report_due = True
    for _ in range(MAX_SKIPPED - 1):
        trainer.train_step(fetched(trainer, random_batch(2)))
    trainer.is_report_due = True
    hook.after_step(trainer)
    trainer.train_step(fetched(trainer, random_batch(2)))
    trainer.is_report_due = True
    with pytest.raises(UserError, match="the gradients of the last 20 steps are not finite"):
        hook.after_step(trainer)


# the length of a run


def simulated_seconds(limit, step_seconds, evaluation_seconds, **options):
    """Returns the time of a run by the plan, with costs that the plan knows after 20 steps."""
    options = {"eval_interval": None, "max_steps": None} | options
    elapsed = 20 * step_seconds
    plan = plan_run(20, limit - elapsed, step_seconds, evaluation_seconds, **options)
    n_evaluations = -(-plan.total_steps // plan.eval_interval)
    elapsed += (plan.total_steps - 20) * step_seconds + n_evaluations * evaluation_seconds
    return elapsed, n_evaluations


@pytest.mark.parametrize("evaluation_seconds", [0.01, 1.0, 13.0, 50.0])
@pytest.mark.parametrize("step_seconds", [0.001, 0.1])
def test_steps_and_evaluations_fit_into_the_time_of_a_run(step_seconds, evaluation_seconds):
    for eval_interval in (None, 500):
        seconds, n_evaluations = simulated_seconds(
            60, step_seconds, evaluation_seconds, eval_interval=eval_interval
        )
        assert n_evaluations >= 1
        if eval_interval is None:
            assert seconds == pytest.approx(60, rel=0.1)
        else:
            assert seconds <= 66


def test_evaluation_longer_than_the_run_is_done_once():
    seconds, n_evaluations = simulated_seconds(20.0, 0.01, 100.0)
    assert n_evaluations == 1
    assert seconds == pytest.approx(100.2, abs=0.1)


def test_evaluation_uses_the_model_without_dropout():
    model = nn.Sequential(nn.Dropout(0.5)).train()
    model.weight = nn.Parameter(torch.ones(3))
    batches = [random_batch(1), random_batch(5)]
    evaluation = evaluate(model, MeanProduct(), batches, torch.device("cpu"))
    mean = torch.cat([batch.inputs for batch in batches]).mean().item()
    assert evaluation.loss == pytest.approx(mean, abs=1e-6)
