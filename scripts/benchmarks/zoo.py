"""Does each attention x rotary x layer learn from the embedded speech? zoo [drawn] [WORD...]"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks.loop import Prepared
from famx.experiment.build import build_optimizer
from famx.experiment.resolve import resolve
from famx.model import build_model
from famx.nn.batch import Batch
from famx.nn.hooks import HasPenalty
from famx.optim import parameter_groups
from famx.registry import names

SMALL = (
    "model.d_model=48",
    "model.n_layers=2",
    "frontend=log_mel",
    "frontend.channels=8",
    "loader.batch_seconds=8",
)
PRODUCT_STEPS = 20
N_SAMPLES = 50
SAMPLE_STEPS = 50

ModelConfig = dict[str, Any]


def main(words: list[str]) -> int:
    """Prints a line for each model that fails, then how many did not.

    With the word `drawn`, models are sampled from the space of `model=drawn`; other words are of
    the command line of `famx.train`.

    Returns:
        The exit status, 1 if any failed.
    """
    # models
    prepared = Prepared(*SMALL, *(word for word in words if word != "drawn"))
    if "drawn" in words:
        steps = SAMPLE_STEPS
        models = list(sampled_models(N_SAMPLES))
    else:
        steps = PRODUCT_STEPS
        models = list(all_combinations())
    # all train on the same batches
    stream = prepared.stream()
    batches = [next(stream)[-1] for _ in range(steps)]
    n_failed = 0
    for name, model in track(models, f"{steps} steps of each", console=Console(stderr=True)):
        config = prepared.config | {"model": prepared.config["model"] | model}
        try:
            failure = why_not_learned(prepared, resolve(config), batches)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if failure:
            n_failed += 1
            print(f"{name}: {failure}", flush=True)
    print(f"{len(models) - n_failed} of {len(models)} models learned in {steps} steps")
    return int(n_failed > 0)


def all_combinations() -> Iterator[tuple[str, ModelConfig]]:
    """Yields a model of two equal layers for every attention x rotary x layer."""
    rooms = ("attention", "rotary", "layer")
    for combination in itertools.product(*map(names, rooms)):
        layer = dict(zip(rooms, combination, strict=True))
        yield " ".join(combination), {"layers": [layer] * 2}


def sampled_models(count: int) -> Iterator[tuple[str, ModelConfig]]:
    """Yields models that are sampled from the space of `model=drawn`, by seed."""
    draw = Prepared.compose("model=drawn")["model"]["draw"]
    for seed in range(count):
        seeded = draw | {"seed": seed}
        model = {"name": "drawn", "n_layers": 4, "layers": None, "draw": seeded}
        yield f"model.draw.seed={seed}", model


def why_not_learned(
    prepared: Prepared, config: Mapping[str, Any], batches: Sequence[Batch]
) -> str | None:
    """Trains a model on each batch; returns what is wrong with its losses, None if they fall."""
    experiment = prepared.experiment
    torch.manual_seed(0)
    model = build_model(config, experiment.tokenizer.get_vocab_size()).to(experiment.device)
    optim = config["optim"]
    optimizer = build_optimizer(optim, parameter_groups(model, optim["lr"]))
    penalized = [module for module in model.modules() if isinstance(module, HasPenalty)]
    losses: list[float] = []
    for batch in batches:
        # the loss, and what gates cost
        loss = experiment.task.loss(model, batch.to(experiment.device))
        losses.append(loss.item())
        penalties = [module.penalty() for module in penalized]
        sum((penalty for penalty in penalties if penalty is not None), loss).backward()
        # a step, unless something is not finite
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not (math.isfinite(losses[-1]) and grad_norm.isfinite()):
            return f"loss {losses[-1]} or its gradient is not finite at step {len(losses)}"
        optimizer.step()
        optimizer.zero_grad()
    # noise of single batches must not decide
    first = mean(losses[:5])
    last = mean(losses[-5:])
    if last < first:
        return None
    return f"the loss does not fall: {first:.3f} in the first five steps, {last:.3f} in the last"
