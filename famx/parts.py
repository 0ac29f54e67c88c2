"""Lists every part and preset, and what parts cost: python -m famx.parts [room...] [--markdown | --measure]"""

import itertools
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence

from famx.config.command import Parser, import_user_parts, run_command
from famx.config.schema import CONF
from famx.notation import UserError
from famx.registry import PARTS, ROOMS, hyperparameters, names, suggest

PRESETS = ("model", "experiment")  # chosen as rooms' parts are, from the files of conf/
COLUMNS = ("parameters", "kFLOP/position", "forward ms", "training ms", "peak MB", "growth")


def show(words: list[str]) -> int:
    """Prints the catalogue or the costs of the rooms that the words name; returns the exit status."""
    parser = Parser(
        prog="python -m famx.parts", description="Lists parts, presets, and what parts cost."
    )
    told = "or model, experiment; all where none is named; famx_parts=[file.py] adds"
    parser.add_argument("rooms", metavar="ROOM", nargs="*", help=told)
    parser.add_argument("--markdown", action="store_true", help="the table that the README shows")
    parser.add_argument(
        "--measure", action="store_true", help="costs, in units of the room's usual part"
    )
    for size, default in (("d_model", 256), ("n_heads", 8), ("t", 256)):
        parser.add_argument(
            f"--{size}", type=int, default=default, help=f"of what is measured ({default})"
        )
    parser.add_argument(
        "--causal", action="store_true", help="measure parts that see no later position"
    )
    given = parser.parse_args(words)
    import_user_parts(given.rooms)
    rooms = [word for word in given.rooms if not word.startswith("famx_parts=")]
    if given.measure:
        _print_costs(rooms or ["attention"], (given.d_model, given.n_heads, given.t, given.causal))
    elif given.markdown:
        _print_markdown(rooms or ROOMS)
    else:
        _print_catalogue(rooms or (*ROOMS, *PRESETS))
    return 0


def _print_markdown(rooms: Sequence[str]) -> None:
    print("| part | what it is | hyperparameters |\n|---|---|---|")
    for room in rooms:
        for name, told, settings in _parts(room):
            print(f"| `{room}={name}` | {told} | {settings and f'`{settings}`'} |")


def _print_catalogue(rooms: Sequence[str]) -> None:
    for room in rooms:
        if room not in (*ROOMS, *PRESETS):
            raise UserError(f"{room}: no such room{suggest(room, (*ROOMS, *PRESETS))}")
    for room in rooms:
        print(room)
        for name, told, settings in (*(_parts(room) if room in ROOMS else ()), *_presets(room)):
            for start, text in ((f"  {name:25}", told), (" " * 27, settings)):
                if text:
                    print(
                        textwrap.fill(text, 120, initial_indent=start, subsequent_indent=" " * 27)
                    )


def _parts(room: str) -> Iterator[tuple[str, str, str]]:
    """Of each part its name, the first line of its module's docstring, and its hyperparameters with their defaults."""
    for name in names(room):
        part = PARTS[room][name]
        line = (sys.modules[part.__module__].__doc__ or "").strip().partition("\n")[0]
        yield (
            name,
            line,
            ", ".join(f"{key}={p.default}" for key, p in hyperparameters(part).items()),
        )


def _presets(group: str) -> Iterator[tuple[str, str, str]]:
    """Of each file of a group of conf/ its name and the comment it begins with."""
    for file in sorted((CONF / group).glob("*.yaml")):
        comment = itertools.takewhile(
            lambda line: line.startswith("#"), file.read_text().splitlines()
        )
        yield (
            file.stem,
            " ".join(line[1:].strip() for line in comment if "@package" not in line),
            "",
        )


def _print_costs(rooms: Sequence[str], sizes: tuple[int, int, int, bool]) -> None:
    """A line a part as soon as it is measured: each cost, and how many times that of the room's usual part it is."""
    # else torch tells stderr, amid the table, that memory from before its profiler is freed
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from famx.analysis.cost import BASELINE, ROUNDS, Sizes, profile_room

    measured = Sizes(*sizes)
    told = ", ".join(f"{key}={value}" for key, value in measured._asdict().items())
    for room in rooms:
        found = profile_room(room, measured)
        for i, (name, cost) in enumerate(found):
            if not i:
                print(
                    f"{room}, in units of {BASELINE[room]}: {told}; times: least of {ROUNDS}, in turns with that"
                )
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
            print(
                f"  {name:20}" + "".join(f"{cell:>16}" for cell in cells) + f"{'t^' + growth:>16}",
                flush=True,
            )


if __name__ == "__main__":
    run_command(lambda: show(sys.argv[1:]))
