"""The options of the trainer: `trainer.KEY=VALUE`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from famx.notation import UserError
from famx.validate import COUNT, DECAY, FRACTION, POSITIVE, THREADS, ConfigSection, between

DEFAULT_TIME = 330.0  # seconds of a run without a limit
DEFAULT_TAIL = 0.2  # share of the steps whose weights are averaged


@dataclass
class TrainerConfig(ConfigSection):
    """Options of the training: its length, its intervals, and its steps.

    Args:
        max_steps: number of optimizer steps.
        max_time: seconds of the training with its evaluations on dev and its checkpoints. After the
            first 20 steps the number of steps is set to fit them, and corrected at evaluations. Of
            two limits, the first that is reached ends the run. None for 330 s without max_steps,
            otherwise for no limit.
        eval_every: steps between evaluations on dev; None for ten evaluations per run, or for fewer
            if they need more than a quarter of max_time.
        save_every: steps between checkpoints; None for ten checkpoints per run.
        log_every: steps between reports; nothing is read from the device in between. None for a
            hundred reports per run, at least 50 steps apart.
        accumulate: batches per step.
        unit_clip: largest norm of the gradient of a unit (a row of a matrix, an output channel, a
            vector), as a fraction of the norm of its weights; None for no clipping. With a bound on
            the norm of all gradients, a few large ones would decide the scale, and without a second
            moment the others would hardly move.
        patience: evaluations without a better score before the run ends.
        ema: decay of the averaged weights that are evaluated; 0 for none.
        tail_average: share of the steps, the last ones, over which weights are averaged; from then
            on, their mean is evaluated. 0 for none; None for 0.2, or for 0 with `ema`.
        precision: precision of the forward pass; auto is bf16 on CUDA, else fp32.
        graphs: whether forward and backward passes run as CUDA graphs; auto does so on CUDA, with
            one process, if all parts allow it.
        compile: whether to compile the layers with torch.compile, which takes a minute or more at
            the start.
        device: device of the model; auto is CUDA where there is one, then MPS, else the CPU.
        threads: number of CPU threads; None for torch's default.
    """

    max_steps: Annotated[int | None, COUNT] = None
    max_time: Annotated[float | None, POSITIVE] = None
    eval_every: Annotated[int | None, COUNT] = None
    save_every: Annotated[int | None, COUNT] = None
    log_every: Annotated[int | None, COUNT] = None
    accumulate: Annotated[int, between(1, 10_000)] = 1
    unit_clip: Annotated[float | None, POSITIVE] = 0.005
    patience: Annotated[int | None, COUNT] = None
    ema: Annotated[float, DECAY] = 0.0
    tail_average: Annotated[float | None, FRACTION] = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    graphs: Literal["auto", "off"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int | None, THREADS] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema and self.tail_average:
            raise UserError(
                f"trainer.ema={self.ema} and trainer.tail_average={self.tail_average} are two "
                "averages of the weights: set one of them to 0"
            )

    @property
    def tail(self) -> float:
        """Share of the steps, the last ones, over which weights are averaged; 0 for none."""
        if self.tail_average is None:
            return 0.0 if self.ema else DEFAULT_TAIL
        return self.tail_average

    @property
    def time_limit(self) -> float | None:
        """Seconds of the run, None for no limit."""
        if self.max_time is None and self.max_steps is None:
            return DEFAULT_TIME
        return self.max_time
