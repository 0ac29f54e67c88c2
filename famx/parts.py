"""Lists every part, its hyperparameters and what it is: python -m famx.parts [room...] [--markdown]"""

import sys
import textwrap

from famx.config import verb
from famx.registry import PARTS, ROOMS, hyperparameters, names


def show(words: list[str]) -> int:
    """Prints the catalogue of the named rooms, of all when none is named; returns the exit status."""
    rooms = [word for word in words if not word.startswith("--")] or ROOMS
    rows = [(room, name, *_told(PARTS[room][name])) for room in rooms for name in names(room)]
    if "--markdown" in words:
        print("| part | what it is | hyperparameters |\n|---|---|---|")
        for room, name, told, settings in rows:
            print(f"| `{room}={name}` | {told} | {settings and f'`{settings}`'} |")
        return 0
    for room in rooms:
        print(room)
        for _, name, told, settings in (row for row in rows if row[0] == room):
            for start, text in ((f"  {name:22}", told), (" " * 24, settings)):
                if text:
                    print(textwrap.fill(text, 120, initial_indent=start, subsequent_indent=" " * 24))
    return 0


def _told(part: type) -> tuple[str, str]:
    """The first line of the docstring of the part's module, and its hyperparameters with their defaults."""
    line = (sys.modules[part.__module__].__doc__ or "").strip().partition("\n")[0]
    return line, ", ".join(f"{key}={p.default}" for key, p in hyperparameters(part).items())


if __name__ == "__main__":
    verb(lambda: show(sys.argv[1:]))
