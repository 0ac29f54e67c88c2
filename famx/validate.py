"""Rules for the numbers in a config, and the base class of sections that state them."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_origin, get_type_hints

from famx.notation import UserError


class Rule(NamedTuple):
    """A condition on a number, and its wording in messages: "must be `requirement`"."""

    holds: Callable[[float], bool]
    requirement: str


def between(low: int, high: int) -> Rule:
    """Returns the rule of a number with two bounds."""
    return Rule(lambda x: low <= x <= high, f"between {low:,} and {high:,}")


# file systems allow 255; a date and a number are added
MAX_NAME_BYTES = 220
FINITE = Rule(lambda x: abs(x) < math.inf, "finite")
POSITIVE = Rule(lambda x: x > 0, "above 0")
COUNT = Rule(lambda x: x >= 1, "at least 1")
SIZE = Rule(lambda x: 1 <= x < 2**63, "at least 1 and below 2**63")
THREADS = between(1, 1024)
NON_NEGATIVE = Rule(lambda x: x >= 0, "at least 0")
FRACTION = Rule(lambda x: 0 <= x <= 1, "between 0 and 1")
RATIO = Rule(lambda x: 0.01 <= x <= 1, "at least 0.01 and at most 1")
DECAY = Rule(lambda x: 0 <= x < 1, "at least 0 and less than 1")
FACTOR = Rule(lambda x: 0.2 <= x <= 5, "between 0.2 and 5")


def check_number(key: str, value: object, rule: Rule = FINITE) -> None:
    """Checks a number, and every number inside a list or mapping; all have to be finite.

    Args:
        key: option that the value belongs to, for the message.
        value: any value; values that are not numbers are accepted.
        rule: condition for each number.

    Raises:
        UserError: a number breaks the rule.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_number(f"{key}.{name}", inner, rule)
    for number in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(number, int | float):
            continue
        for required in (FINITE, rule):
            if not required.holds(number):
                raise UserError(f"{key}={value} must be {required.requirement}")


def check_folder_name(name: object) -> None:
    """Checks the option `name`, which is a part of a folder's name.

    Raises:
        UserError: it is empty, too long for a file system, or a path of several folders.
    """
    size = len(str(name).encode(errors="surrogateescape"))
    if size > MAX_NAME_BYTES:
        raise UserError(
            f"name={str(name)[:20]}... has {size:,} bytes and must have at most {MAX_NAME_BYTES}"
        )
    if not re.fullmatch(r"[^/\0]+", str(name)):
        raise UserError(f"name={name} must be the name of one folder, without a /")


class ConfigSection:
    """Base of dataclasses whose fields state a rule for their numbers: `Annotated[int, COUNT]`.

    A field without a rule has to be finite. A class `TrainerConfig` is the section `trainer`.
    """

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        hints: dict[str, Any] = get_type_hints(type(self), include_extras=True)
        for key, hint in hints.items():
            rule = hint.__metadata__[0] if get_origin(hint) is Annotated else FINITE
            check_number(f"{section}.{key}", getattr(self, key), rule)
