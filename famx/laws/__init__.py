"""The contracts: what every part of a room promises, one function a law. Tests run them over the registry."""

import importlib
import inspect
from collections.abc import Callable

Law = Callable[[type], None]


def laws(room: str) -> dict[str, Law]:
    """The named laws of a room: the public functions of `famx/laws/<room>.py`, in the order they stand there."""
    module = importlib.import_module(f"famx.laws.{room}")
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }


def kept(room: str, part: type) -> dict[str, Law]:
    """The laws that a part is held to: all of its room's, but those its `exempt` gives a reason against."""
    return {name: law for name, law in laws(room).items() if name not in getattr(part, "exempt", {})}
