"""The contracts: what every part of a room promises, one function a law. Tests run them over the registry."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from famx.registry import select_context

Contract = Callable[[type], None]


def contracts(room: str) -> dict[str, Contract]:
    """The named laws of a room: the public functions of `famx/contracts/<room>.py`, in the order they stand there."""
    module = importlib.import_module(f"famx.contracts.{room}")
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    }


def applicable(room: str, part: type) -> dict[str, Contract]:
    """The laws that a part is held to: all of its room's, but those its `exempt` gives a reason against."""
    return {
        name: law
        for name, law in contracts(room).items()
        if name not in getattr(part, "exempt", {})
    }


def build_for_test(part: Callable[..., Any], **context: Any) -> Any:
    """The part, given what of the context it asks for, as training builds it."""
    return part(**select_context(part, context))


def require_finite(*outputs: Tensor) -> tuple[Tensor, ...]:
    """The outputs, to compare them.

    Raises:
        AssertionError: one is not finite, for which no other law is to be blamed.
    """
    assert all(y.isfinite().all() for y in outputs), "an output is not finite"
    return outputs
