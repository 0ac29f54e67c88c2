"""Says which laws of its room a part breaks, and where: python -m famx.check my_block.py, or attention=multihead"""

import functools
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from famx import laws
from famx.config import Parser, complete, parsed, verb
from famx.notation import UserError
from famx.registry import ROOMS, fault, get, load, load_file, nearest

STYLES = {"kept": "green", "exempt": "yellow", "broken": "red"}


def main(words: list[str]) -> int:
    """Prints a line a law and a sentence a part; returns 0, or 2 where a law is broken."""
    parser = Parser(prog="python -m famx.check", description="Says which laws a part breaks, and where.")
    told = "a file of your own, or room=name; room.key=value sets a hyperparameter"
    parser.add_argument("words", metavar="PART", nargs="+", help=told)
    torch.set_num_threads(1)  # many small tensors: a second thread costs more than it saves
    load("famx")
    parts, settings = _read(parser.parse_args(words).words)
    console, sentences = Console(highlight=False, soft_wrap=True), {}
    for room, name in parts:
        console.print(f"{room}={name}: {len(laws.laws(room))} laws", style="bold")
        found: dict[str, dict[str, str]] = {state: {} for state in STYLES}
        for law, state, told in _judged(console, room, name, settings.get(room, {})):
            found[state][law] = " ".join(told.split())
            console.print(f"  [{STYLES[state]}]{state:8}[/]", end="")
            console.print(f"{law}: {found[state][law]}" if told else law, markup=False)
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
            raise UserError(f"{word}: no such room{nearest(room, ROOMS)}")
        if room not in ROOMS or not value:
            parts += load_file(word)
        elif name:
            settings.setdefault(room, {})[name] = parsed(key, value)
        else:
            parts.append((room, value))
    for room, hyper in settings.items():
        if room not in dict(parts):
            raise UserError(f"{room}.{next(iter(hyper))} is set, but no part of the room {room} is checked")
    return parts, settings


def _judged(console: Console, room: str, name: str, settings: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each law's name, whether the part keeps it, and why not."""
    cls = get(room, name)
    hyper = complete(room, {"name": name} | settings)
    chosen = {key: tuple(hyper[key]) if isinstance(hyper[key], list) else hyper[key] for key in settings}
    init = functools.partialmethod(cls.__init__, **chosen)
    part = type(name, (cls,), {"__init__": init, "__module__": cls.__module__}) if chosen else cls
    exempt, held = getattr(cls, "exempt", {}), laws.laws(room)
    for law in exempt:
        if law not in held:
            raise UserError(f"{room}={name} is exempt from {law}, which is no law of its room{nearest(law, held)}")
    for law, holds in held.items():
        if reason := exempt.get(law):
            yield law, "exempt", reason
            continue
        torch.manual_seed(0)
        try:
            with console.status(f"{room}={name}: {law}"):
                holds(part)
        except AssertionError as error:
            yield law, "broken", str(error) or fault(error, inspect.getfile(cls))
        except Exception as error:
            yield law, "broken", fault(error, inspect.getfile(cls))
        else:
            yield law, "kept", ""


def _sentence(found: dict[str, dict[str, str]]) -> str:
    total = sum(map(len, found.values()))
    if len(found["broken"]) > 1 and not found["kept"] and len(faults := set(found["broken"].values())) == 1:
        return f"breaks every law by the same fault, {faults.pop()}"
    if found["broken"]:
        return f"breaks {len(found['broken'])} of its {total} laws: {', '.join(found['broken'])}"
    exempt = f", but {', '.join(found['exempt'])}, from which it is exempt" if found["exempt"] else ""
    return f"keeps all of its {total} laws{exempt}"


if __name__ == "__main__":
    verb(lambda: main(sys.argv[1:]))
