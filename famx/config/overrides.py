"""Reads a single override of the command line, such as `seed=0,1`, as Hydra does."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException


def values_of(word: str) -> list[Any]:
    """Returns the values of an override, several in a sweep; none if Hydra cannot read it."""
    override = parse_override(word)
    if override is None or override.is_delete():
        return []
    return override_values(override)


def parse_override(word: str) -> Override | None:
    """Returns an override as Hydra reads it, or None if it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    # Python's errors: an integer of thousands of digits, thousands of brackets
    except (HydraException, ValueError, RecursionError):
        return None


def override_values(override: Override) -> list[Any]:
    """Returns the values of an override, several in a sweep."""
    if not override.is_sweep_override():
        return [override.value()]
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else []
    return [value.text if isinstance(value, QuotedString) else value for value in values]
