"""The peak learning rate at every step."""

from dataclasses import dataclass

from famx.registry import register
from famx.schedule.base import Schedule


@register
@dataclass(frozen=True)
class Constant(Schedule):
    """1 at every step."""

    total_steps: int

    def __call__(self, step: int) -> float:
        """Returns 1."""
        return 1.0
