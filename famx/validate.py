"""The sections of a config that are no parts: how examples are loaded, how long is trained, and what numbers may be."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

from famx.notation import UserError


class Rule(NamedTuple):
    """What a number has to be, and how that is said."""

    holds: Callable[[float], bool]
    told: str


FINITE = Rule(math.isfinite, "finite")
POSITIVE = Rule(lambda x: x > 0, "above 0")
COUNT = Rule(lambda x: x >= 1, "at least 1")
THREADS = Rule(lambda x: 1 <= x <= 1024, "between 1 and 1,024")
NON_NEGATIVE = Rule(lambda x: x >= 0, "at least 0")
FRACTION = Rule(lambda x: 0 <= x <= 1, "between 0 and 1")
DECAY = Rule(lambda x: 0 <= x < 1, "at least 0 and less than 1")
FACTOR = Rule(lambda x: 0.2 <= x <= 5, "between 0.2 and 5")


def check_number(key: str, value: Any, rule: Rule = FINITE) -> None:
    """Holds a number, and every number inside of a list or mapping, to a rule; all have to be finite.

    Raises:
        UserError: one breaks it.
    """
    if isinstance(value, dict):
        for name, below in value.items():
            check_number(f"{key}.{name}", below, rule)
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int | float) and not (math.isfinite(number) and rule.holds(number)):
            raise UserError(
                f"{key}={value} must be {rule.told if math.isfinite(number) else 'finite'}"
            )


class ConfigSection:
    """Holds the fields of a dataclass to the rules they are annotated with; those without one have to be finite."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for key, hint in get_type_hints(type(self), include_extras=True).items():
            check_number(f"{section}.{key}", getattr(self, key), *getattr(hint, "__metadata__", ()))
