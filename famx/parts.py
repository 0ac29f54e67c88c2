"""Lists every part, what it is, and what it costs: python -m famx.parts [room...] [--markdown | --measure]"""

import os
import sys
import textwrap
from collections.abc import Sequence

from famx.config import Parser, own_parts, verb
from famx.registry import PARTS, ROOMS, hyperparameters, names

COLUMNS = ("parameters", "kFLOP/position", "forward ms", "training ms", "peak MB", "growth")


def show(words: list[str]) -> int:
    """Prints the catalogue or the costs of the rooms that the words name; returns the exit status."""
    parser = Parser(prog="python -m famx.parts", description="Lists parts and what they cost.")
    parser.add_argument("rooms", metavar="ROOM", nargs="*", help="all where none is named; famx_parts=[file.py] adds")
    parser.add_argument("--markdown", action="store_true", help="the table that the README shows")
    parser.add_argument("--measure", action="store_true", help="costs, in units of the room's usual part")
    for size, default in (("d_model", 256), ("n_heads", 8), ("t", 256)):
        parser.add_argument(f"--{size}", type=int, default=default, help=f"of what is measured ({default})")
    parser.add_argument("--causal", action="store_true", help="measure parts that see no later position")
    given = parser.parse_args(words)
    own_parts(given.rooms)
    rooms = [word for word in given.rooms if not word.startswith("famx_parts=")]
    if given.measure:
        _print_costs(rooms or ["attention"], (given.d_model, given.n_heads, given.t, given.causal))
    else:
        _print_catalogue(rooms or ROOMS, given.markdown)
    return 0


def _print_catalogue(rooms: Sequence[str], markdown: bool) -> None:
    rows = [(room, name, *_told(PARTS[room][name])) for room in rooms for name in names(room)]
    if markdown:
        print("| part | what it is | hyperparameters |\n|---|---|---|")
        for room, name, told, settings in rows:
            print(f"| `{room}={name}` | {told} | {settings and f'`{settings}`'} |")
        return
    for room in rooms:
        print(room)
        for _, name, told, settings in (row for row in rows if row[0] == room):
            for start, text in ((f"  {name:22}", told), (" " * 24, settings)):
                if text:
                    print(textwrap.fill(text, 120, initial_indent=start, subsequent_indent=" " * 24))


def _told(part: type) -> tuple[str, str]:
    """The first line of the docstring of the part's module, and its hyperparameters with their defaults."""
    line = (sys.modules[part.__module__].__doc__ or "").strip().partition("\n")[0]
    return line, ", ".join(f"{key}={p.default}" for key, p in hyperparameters(part).items())


def _print_costs(rooms: Sequence[str], sizes: tuple[int, int, int, bool]) -> None:
    """A line a part as soon as it is measured: each cost, and how many times that of the room's usual part it is."""
    # else torch tells stderr, amid the table, that memory from before its profiler is freed
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from famx.measure import ROUNDS, USUAL, Sizes, costs

    measured = Sizes(*sizes)
    told = ", ".join(f"{key}={value}" for key, value in measured._asdict().items())
    for room in rooms:
        found = costs(room, measured)
        for i, (name, cost) in enumerate(found):
            if not i:
                print(f"{room}, in units of {USUAL[room]}: {told}; times: least of {ROUNDS}, in turns with that")
                print(f"  {'':20}" + "".join(f"{column:>16}" for column in COLUMNS))
            if isinstance(cost, str):
                print(f"  {name:20}{cost}")
                continue
            own, usual, growth = cost
            cells = [
                f"{value * scale:,.{digits}f} {f'{value / unit:5.2f}x' if unit else '     -'}"
                for value, unit, scale, digits in zip(
                    own, usual, (1, 1e-3, 1e3, 1e3, 1e-6), (0, 0, 2, 2, 2), strict=True
                )
            ]
            print(f"  {name:20}" + "".join(f"{cell:>16}" for cell in cells) + f"{'t^' + growth:>16}", flush=True)


if __name__ == "__main__":
    verb(lambda: show(sys.argv[1:]))
