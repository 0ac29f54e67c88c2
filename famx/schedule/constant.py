"""The peak learning rate, always."""

from dataclasses import dataclass

from famx.registry import register


@register
@dataclass(frozen=True)
class Constant:
    """1 at every step."""

    total_steps: int

    def __call__(self, step: int) -> float:
        return 1.0
