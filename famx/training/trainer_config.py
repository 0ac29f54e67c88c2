"""The options of the trainer: `trainer.KEY=VALUE`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from famx.validate import COUNT, DECAY, POSITIVE, THREADS, ConfigSection


@dataclass
class TrainerConfig(ConfigSection):
    """Length of the training, and the intervals of everything else.

    Args:
        max_steps: optimizer steps; where given, max_time has no effect.
        max_time: seconds; the number of steps is fixed after the first 20 of them.
        eval_every: steps between evaluations on dev; None: ten times a run.
        save_every: steps between checkpoints; None: ten times a run.
        log_every: steps between reports; nothing is read from the device in between.
        accumulate: batches per step.
        unit_clip: largest norm of the gradient of a unit (a row of a matrix, an output channel, a
            vector), as a fraction of the norm of its weights; None for no clipping. A bound on the
            norm of all gradients would leave the few large ones in charge: without a second moment
            the others would hardly move.
        patience: evaluations without a better score before the run ends.
        ema: decay of the averaged weights that are evaluated; 0 for none.
        precision: of the forward pass; auto is bf16 on CUDA, else fp32.
        threads: of the CPU; None leaves torch's default.
    """

    max_steps: Annotated[int | None, COUNT] = None
    max_time: Annotated[float, POSITIVE] = 330.0
    eval_every: Annotated[int | None, COUNT] = None
    save_every: Annotated[int | None, COUNT] = None
    log_every: Annotated[int, COUNT] = 50
    accumulate: Annotated[int, COUNT] = 1
    unit_clip: Annotated[float | None, POSITIVE] = 0.005
    patience: Annotated[int | None, COUNT] = None
    ema: Annotated[float, DECAY] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int | None, THREADS] = None
