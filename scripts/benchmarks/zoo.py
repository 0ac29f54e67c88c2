"""Does each attention x rotary x layer (20 steps; zoo drawn: 50 draws, 50 steps) learn from the embedded speech?"""

import itertools
import math
from statistics import mean

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks.loop import Prepared
from famx.experiment import run as experiment
from famx.registry import names

SMALL = [
    "model.d_model=48",
    "model.n_layers=2",
    "frontend=log_mel",
    "frontend.channels=8",
    "loader.batch=8",
]


def main(words: list[str]) -> int:
    """Prints a line for each model that fails, then how many did not; words beside `drawn` are the command line's.

    Returns:
        The exit status, 1 if any failed.
    """
    drawn, words = "drawn" in words, [word for word in words if word != "drawn"]
    prepared = Prepared(*SMALL, *words)
    steps, models = (50, list(draws(50))) if drawn else (20, list(products()))
    stream = prepared.stream()
    batches = [next(stream)[-1] for _ in range(steps)]
    failed = 0
    for name, model in track(models, f"{steps} steps of each", console=Console(stderr=True)):
        config = experiment.settle(prepared.config | {"model": prepared.config["model"] | model})
        try:
            told = complaint(prepared, config, batches)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        if told:
            failed += 1
            print(f"{name}: {told}", flush=True)
    print(f"{len(models) - failed} of {len(models)} models learned in {steps} steps")
    return int(failed > 0)


def products():
    """Every attention x every rotary x every layer."""
    rooms = ("attention", "rotary", "layer")
    for combination in itertools.product(*map(names, rooms)):
        yield " ".join(combination), {"layers": [dict(zip(rooms, combination, strict=True))] * 2}


def draws(count: int):
    """Draws of the space of `model=drawn`, by seed."""
    draw = Prepared.composed("model=drawn")["model"]["draw"]
    for seed in range(count):
        yield (
            f"model.draw.seed={seed}",
            {"name": "drawn", "n_layers": 4, "layers": None, "draw": draw | {"seed": seed}},
        )


def complaint(prepared: Prepared, config: dict, batches: list) -> str:
    """What is wrong with the losses of a model trained on the batches in turn; nothing if they fall."""
    torch.manual_seed(0)
    model = experiment.build_model(config, prepared.tokenizer.get_vocab_size()).to(prepared.device)
    optimizer = experiment.build_optimizer(
        config["optim"], experiment.parameter_groups(model, config["optim"]["lr"])
    )
    paying, losses = [m for m in model.modules() if hasattr(m, "penalty")], []
    for batch in batches:
        loss = prepared.task.loss(model, batch.to(prepared.device))
        losses.append(loss.item())
        costs = [cost for module in paying if (cost := module.penalty()) is not None]
        sum(costs, loss).backward()
        if (
            not math.isfinite(losses[-1])
            or not nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        ):
            return f"loss {losses[-1]} or its gradient is not finite at step {len(losses)}"
        optimizer.step()
        optimizer.zero_grad()
    first, last = mean(losses[:5]), mean(losses[-5:])
    return (
        ""
        if last < first
        else f"its loss does not fall, {first:.3f} in the first five steps, {last:.3f} in the last"
    )
