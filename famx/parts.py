"""Lists parts and presets, and what parts cost: python -m famx.parts [room...] [--measure]"""

import os
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from famx import files
from famx.analysis.settings import SECTIONS, settings_of, settings_page
from famx.config.command import Parser, import_user_parts, run_command
from famx.config.schema import CONF
from famx.notation import UserError, suggest
from famx.registry import PARTS, ROOMS, hyperparameters, names

if TYPE_CHECKING:
    from famx.analysis.cost import Profile

PRESETS = ("model", "experiment")  # groups of conf/ that are chosen on the command line like rooms
GROUPS = tuple(dict.fromkeys((*SECTIONS, *ROOMS, *PRESETS)))
DOCS = CONF.parent / "docs"
PAGE = DOCS / "parts.md"
SETTINGS_PAGE = DOCS / "settings.md"
HEADING = """\
# Parts

Every part of every room: its source and its hyperparameters with their defaults. This page is
written by `python -m famx.parts --markdown --write`, and a test compares the two.
"""

# columns of --measure: heading, factor from SI units, digits
COLUMNS = (
    ("parameters", 1.0, 0),
    ("kFLOP/position", 1e-3, 0),
    ("forward ms", 1e3, 2),
    ("training ms", 1e3, 2),
    ("peak MB", 1e-6, 2),
)
SIZES = {"d_model": 256, "n_heads": 8, "t": 256}
NAME_WIDTH = 25  # of the catalogue, in characters
LINE_WIDTH = 120


class Entry(NamedTuple):
    """A line of the catalogue: the name of a part or preset, its description and its settings."""

    name: str
    description: str
    settings: str = ""


def show(words: list[str]) -> int:
    """Prints the catalogue or the costs of the rooms that the words name; returns the exit status.

    Raises:
        UserError: there is no such room, or its parts cannot be measured.
    """
    options = _parser().parse_args(words)
    import_user_parts(options.rooms)
    rooms = [word for word in options.rooms if not word.startswith("famx_parts=")]
    if options.settings:
        _show_settings(rooms, options.write)
    elif options.measure:
        _print_costs(rooms or ["attention"], options)
    elif options.write:
        _write_page(options.rooms)
    elif options.markdown:
        print(markdown(rooms or ROOMS), end="")
    else:
        _print_catalogue(rooms or GROUPS)
    return 0


def markdown(rooms: Sequence[str]) -> str:
    """Returns the page of documentation of the rooms: a heading, and a table for each room."""
    lines = [HEADING]
    for room in rooms:
        lines += [f"## {room}", "", "| part | what it is | hyperparameters |", "|---|---|---|"]
        for entry in _parts(room):
            # a vertical bar, as in a norm |x|, would end the cell
            description = entry.description.replace("|", r"\|")
            settings = f"`{entry.settings}`" if entry.settings else ""
            lines.append(f"| `{room}={entry.name}` | {description} | {settings} |")
        lines.append("")
    return "\n".join(lines)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m famx.parts", description="Lists parts, presets, and what parts cost."
    )
    # options of the catalogue
    parser.add_argument(
        "rooms",
        metavar="ROOM",
        nargs="*",
        help="a room, a section such as trainer, model or experiment (default: all); "
        "famx_parts=[file.py] adds parts",
    )
    parser.add_argument("--markdown", action="store_true", help="print the page docs/parts.md")
    parser.add_argument("--write", action="store_true", help="write the page into docs/")
    parser.add_argument(
        "--settings", action="store_true", help="print all settings, the page docs/settings.md"
    )
    # options of --measure
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure costs, in units of the baseline of each room",
    )
    for name, default in SIZES.items():
        help_text = f"{name} of the measured parts (default: {default})"
        parser.add_argument(f"--{name}", type=int, default=default, help=help_text)
    parser.add_argument(
        "--causal", action="store_true", help="measure causal parts, which see no later position"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on"
    )
    return parser


def _write_page(words: Sequence[str]) -> None:
    """Writes docs/parts.md, which lists all rooms with the parts of famx alone."""
    _require_all(words, PAGE)
    files.write_atomic(PAGE, markdown(ROOMS))


def _require_all(words: Sequence[str], page: Path) -> None:
    """Checks that a page of all parts or settings can be written."""
    if words:
        raise UserError(f"--write: {page.name} lists all parts of famx; omit {' '.join(words)}")
    if not DOCS.is_dir():
        raise UserError(f"--write: there is no folder {DOCS}; only a checkout of famx has one")


def _show_settings(words: Sequence[str], writes: bool) -> None:
    """Prints or writes docs/settings.md."""
    _require_all(words, SETTINGS_PAGE)
    if writes:
        files.write_atomic(SETTINGS_PAGE, settings_page())
    else:
        print(settings_page(), end="")


def _print_catalogue(groups: Sequence[str]) -> None:
    """Prints the parts of rooms and the presets of groups of conf/."""
    # a typo is refused before anything is printed
    for group in groups:
        if group not in GROUPS:
            raise UserError(f"{group}: no such room{suggest(group, GROUPS)}")
    indent = " " * (NAME_WIDTH + 2)
    for group in groups:
        print(group)
        for setting in settings_of(group) if group in SECTIONS else ():
            # the name, then type and default, then what it is
            words = (
                f"{setting.kind}; default {setting.default}" if setting.default else setting.kind
            )
            print(f"  {setting.key:{NAME_WIDTH - 1}} {words}")
            _print_wrapped(setting.description, indent, indent)
        parts = list(_parts(group)) if group in ROOMS else []
        for entry in [*parts, *presets(group)]:
            _print_wrapped(entry.description, f"  {entry.name:{NAME_WIDTH}}", indent)
            _print_wrapped(entry.settings, indent, indent)


def _print_wrapped(text: str, first_indent: str, indent: str) -> None:
    if text:
        print(
            textwrap.fill(text, LINE_WIDTH, initial_indent=first_indent, subsequent_indent=indent)
        )


def _parts(room: str) -> Iterator[Entry]:
    """Yields each part with the first line of its module's docstring and its hyperparameters."""
    for name in names(room):
        part = PARTS[room][name]
        docstring = sys.modules[part.__module__].__doc__ or ""
        description = docstring.strip().partition("\n")[0]
        defaults = [f"{key}={p.default}" for key, p in hyperparameters(part).items()]
        yield Entry(name, description, ", ".join(defaults))


def presets(group: str) -> Iterator[Entry]:
    """Yields each file of a group of conf/ with the comment that it begins with."""
    for file in sorted((CONF / group).glob("*.yaml")):
        comment = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            # instructions to Hydra, and indented commands, describe nothing
            if "@package" not in line and not line.startswith("#   "):
                comment.append(line[1:].strip())
        yield Entry(file.stem, " ".join(comment))


def _print_costs(rooms: Sequence[str], options: Namespace) -> None:
    """Prints one line per part once it is measured: its costs, and their ratios to the baseline.

    Args:
        options: `d_model`, `n_heads`, `t`, `causal` and `device` of the measured parts.
    """
    # torch would report in the table, on stderr, the release of memory older than its profiler
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from famx.analysis.cost import BASELINE, ROUNDS, Profile, Sizes, profile_room

    # a room takes seconds to minutes, so each part is printed as soon as it is measured
    sizes = Sizes(options.d_model, options.n_heads, options.t, options.causal, options.device)
    settings = ", ".join(f"{key}={value}" for key, value in sizes._asdict().items())
    for room in rooms:
        for i, (name, profile) in enumerate(profile_room(room, sizes)):
            # the heading waits for the first part: a room that cannot be measured raises there
            if i == 0:
                print(
                    f"{room}, in units of {BASELINE[room]}: {settings}; "
                    f"times: fastest of {ROUNDS}, interleaved"
                )
                headings = [*(heading for heading, _, _ in COLUMNS), "growth"]
                print(f"  {'':20}" + "".join(f"{heading:>16}" for heading in headings))
            line = _format_costs(profile) if isinstance(profile, Profile) else str(profile)
            print(f"  {name:20}{line}", flush=True)


def _format_costs(profile: "Profile") -> str:
    # some baselines have no parameters or no FLOPs to compare with
    cells = []
    for cost, baseline, (_, factor, digits) in zip(
        profile.cost, profile.baseline, COLUMNS, strict=True
    ):
        ratio = f"{cost / baseline:5.2f}x" if baseline else "     -"
        cells.append(f"{cost * factor:,.{digits}f} {ratio}")
    cells.append(f"t^{profile.growth}")
    return "".join(f"{cell:>16}" for cell in cells)


if __name__ == "__main__":
    run_command(lambda: show(sys.argv[1:]))
