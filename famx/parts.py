"""Lists every part, its hyperparameters and what it is: python -m famx.parts [room...]"""

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from famx.config import verb
from famx.registry import PARTS, ROOMS, hyperparameters, names


def show(rooms: list[str]) -> int:
    """Prints the catalogue of the named rooms, of all when none is named; returns the exit status."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("part", "what it is", "hyperparameters"):
        table.add_column(column, overflow="fold")
    for room in rooms or ROOMS:
        for name in names(room):
            part = PARTS[room][name]
            settings = ", ".join(f"{key}={p.default}" for key, p in hyperparameters(part).items())
            table.add_row(f"{room}={name}", _line(part), settings)
        table.add_section()
    Console(highlight=False, markup=False).print(table)
    return 0


def _line(part: type) -> str:
    """The first line of the docstring of the part's module."""
    return (sys.modules[part.__module__].__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    verb(lambda: show(sys.argv[1:]))
