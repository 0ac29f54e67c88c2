"""The sections of a config that are no parts: how examples are loaded, how long is trained, and what numbers may be."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from famx.notation import UserError


class Rule(NamedTuple):
    """What a number has to be, and how that is said."""

    holds: Callable[[float], bool]
    told: str


FINITE = Rule(math.isfinite, "finite")
POSITIVE = Rule(lambda x: x > 0, "above 0")
COUNT = Rule(lambda x: x >= 1, "at least 1")
THREADS = Rule(lambda x: 1 <= x <= 1024, "between 1 and 1,024")
FROM_ZERO = Rule(lambda x: x >= 0, "at least 0")
SHARE = Rule(lambda x: 0 <= x <= 1, "between 0 and 1")
DECAY = Rule(lambda x: 0 <= x < 1, "at least 0 and less than 1")
FACTOR = Rule(lambda x: 0.2 <= x <= 5, "between 0.2 and 5")


def hold(key: str, value: Any, rule: Rule = FINITE) -> None:
    """Holds a number, and every number inside of a list or mapping, to a rule; all have to be finite.

    Raises:
        UserError: one breaks it.
    """
    if isinstance(value, dict):
        for name, below in value.items():
            hold(f"{key}.{name}", below, rule)
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int | float) and not (math.isfinite(number) and rule.holds(number)):
            raise UserError(f"{key}={value} must be {rule.told if math.isfinite(number) else 'finite'}")


class Section:
    """Holds the fields of a dataclass to the rules they are annotated with; those without one have to be finite."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for key, hint in get_type_hints(type(self), include_extras=True).items():
            hold(f"{section}.{key}", getattr(self, key), *getattr(hint, "__metadata__", ()))


@dataclass
class LoaderConfig(Section):
    """How examples become batches.

    Args:
        batch: budget of a batch with its padding: seconds of audio, or tokens of text; None: 24 seconds, 1,024 tokens.
        buckets: groups of like length that an epoch's order is shuffled within.
        workers: processes that read ahead; 0 reads in the trainer's own.
        speed: factors that recordings are sped up by, one drawn for each.
        snr: how many decibels white noise stays below a recording, one drawn for each; without any there is no noise.
        time_masks: stretches of time that are blanked (SpecAugment, arXiv 1904.08779).
        time_width: longest of them, share of the utterance.
        mel_masks: bands of frequency that are blanked.
        mel_width: widest of them, share of the mel axis.
    """

    batch: Annotated[float | None, POSITIVE] = None
    buckets: Annotated[int, COUNT] = 30
    workers: Annotated[int, FROM_ZERO] = 0
    speed: Annotated[list[float], FACTOR] = field(default_factory=lambda: [0.9, 0.95, 1.0, 1.05, 1.1])
    snr: list[float] = field(default_factory=list)
    time_masks: Annotated[int, FROM_ZERO] = 2
    time_width: Annotated[float, SHARE] = 0.05
    mel_masks: Annotated[int, FROM_ZERO] = 2
    mel_width: Annotated[float, SHARE] = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.speed:
            raise UserError("loader.speed=[] must have a factor, [1.0] for the recordings as they are")


@dataclass
class TrainerConfig(Section):
    """How long is trained, and what is done in between.

    Args:
        max_steps: optimizer steps; where given, max_time is not looked at.
        max_time: seconds; total_steps is fixed from the first 20 steps.
        eval_every, save_every: steps between evaluations on dev and between checkpoints; None: ten times a run.
        log_every: steps between reports; nothing is read from the device in between.
        accumulate: batches a step.
        clip: largest norm of a unit's gradient, as a share of the norm of its weights. A bound on all together leaves
            what a few loud tensors dominate as it is; without a second moment the quiet ones would hardly move. None
            leaves gradients as they are.
        patience: evaluations without a better score before the run ends.
        ema: decay of the averaged weights that are evaluated; 0 for none.
        threads: of the CPU; None leaves torch's choice.
    """

    max_steps: Annotated[int | None, COUNT] = None
    max_time: Annotated[float, POSITIVE] = 330.0
    eval_every: Annotated[int | None, COUNT] = None
    save_every: Annotated[int | None, COUNT] = None
    log_every: Annotated[int, COUNT] = 50
    accumulate: Annotated[int, COUNT] = 1
    clip: Annotated[float | None, POSITIVE] = 0.005
    patience: Annotated[int | None, COUNT] = None
    ema: Annotated[float, DECAY] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int | None, THREADS] = None
