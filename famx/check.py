"""Says which laws of its room a part breaks, and where: python -m famx.check my_block.py, or attention=multihead"""

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from famx import contracts
from famx.config.command import Parser, parse_yaml, run_command
from famx.config.schema import complete_choice
from famx.contracts import ContractError
from famx.notation import UserError
from famx.registry import ROOMS, describe_exception, get, load, load_file, names, suggest

STYLES = {"kept": "green", "exempt": "yellow", "broken": "red"}


def main(words: list[str]) -> int:
    """Prints a line a law and a sentence a part; returns 0, or 2 where a law is broken."""
    parser = Parser(
        prog="python -m famx.check", description="Says which laws a part breaks, and where."
    )
    told = "a file of your own, or room=name; room.key=value sets a hyperparameter"
    parser.add_argument("words", metavar="PART", nargs="+", help=told)
    torch.set_num_threads(1)  # many small tensors: a second thread costs more than it saves
    load("famx")
    parts, settings = _read(parser.parse_args(words).words)
    console, sentences = Console(highlight=False, soft_wrap=True), {}
    for (room, name), part in [
        (chosen, _part(*chosen, settings.get(chosen[0], {}))) for chosen in parts
    ]:
        console.print(f"{room}={name}: {len(contracts.contracts(room))} laws", style="bold")
        found: dict[str, dict[str, str]] = {state: {} for state in STYLES}
        for law, state, told in _judged(console, room, name, part):
            told = " ".join(told.split())
            shown = next(
                (f"as {other}" for other, earlier in found["broken"].items() if earlier == told),
                told,
            )
            found[state][law] = told
            console.print(f"  [{STYLES[state]}]{state:8}[/]", end="")
            console.print(f"{law}: {shown}" if told else law, markup=False)
        sentences[room, name] = _sentence(found)
    for (room, name), sentence in sentences.items():
        console.print(f"{room}={name} {sentence}")
    return 2 if any(sentence.startswith("breaks") for sentence in sentences.values()) else 0


def _read(words: list[str]) -> tuple[list[tuple[str, str]], dict[str, dict[str, Any]]]:
    """Room and name of each part that the words choose, and what they set of each room's hyperparameters."""
    parts: list[tuple[str, str]] = []
    settings: dict[str, dict[str, Any]] = {}
    for word in words:
        key, _, value = word.partition("=")
        room, _, name = key.partition(".")
        if room not in ROOMS and value and not Path(word).is_file():
            raise UserError(f"{word}: no such room{suggest(room, ROOMS)}")
        if key in ROOMS and not value and not Path(word).is_file():
            raise UserError(f"{key} is a room: give {key}=NAME{suggest('', names(key))}")
        if room not in ROOMS or not value:
            parts += load_file(word)
        elif name:
            settings.setdefault(room, {})[name] = parse_yaml(key, value)
        else:
            parts.append((room, value))
    for room, hyper in settings.items():
        if room not in dict(parts):
            raise UserError(
                f"{room}.{next(iter(hyper))} is set, but no part of the room {room} is checked"
            )
    return parts, settings


def _part(room: str, name: str, settings: dict[str, Any]) -> type:
    """The part, of hyperparameters that are set."""
    cls = get(room, name)
    hyper = complete_choice(room, {"name": name} | settings)
    chosen = {
        key: tuple(hyper[key]) if isinstance(hyper[key], list) else hyper[key] for key in settings
    }
    init = functools.partialmethod(cls.__init__, **chosen)
    held = contracts.contracts(room)
    for law in getattr(cls, "exempt", {}):
        if law not in held:
            raise UserError(
                f"{room}={name} is exempt from {law}, which is no law of its room{suggest(law, held)}"
            )
    return type(name, (cls,), {"__init__": init, "__module__": cls.__module__}) if chosen else cls


def _judged(console: Console, room: str, name: str, part: type) -> Iterator[tuple[str, str, str]]:
    """Each law's name, whether the part keeps it, and why not."""
    exempt = getattr(part, "exempt", {})
    for law, holds in contracts.contracts(room).items():
        if reason := exempt.get(law):
            yield law, "exempt", reason
            continue
        torch.manual_seed(0)
        try:
            with console.status(f"{room}={name}: {law}"):
                holds(part)
        except Exception as error:
            told = isinstance(error, ContractError | UserError) and str(error)
            yield law, "broken", told or describe_exception(error, inspect.getfile(part))
        else:
            yield law, "kept", ""


def _sentence(found: dict[str, dict[str, str]]) -> str:
    total = sum(map(len, found.values()))
    if broken := found["broken"]:
        told = f"breaks {len(broken)} of its {total} laws"
        ((text, n),) = Counter(broken.values()).most_common(1)
        if n > 2:
            return f"{told}, {'all' if n == len(broken) else n} of them by one fault: {text}"
        return f"{told}: {', '.join(broken)}"
    exempt = (
        f", but {', '.join(found['exempt'])}, from which it is exempt" if found["exempt"] else ""
    )
    return f"keeps all of its {total} laws{exempt}"


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
