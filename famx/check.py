"""Checks a part against the contracts of its room: python -m famx.check my_block.py"""

import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from famx.config.command import Parser, parse_yaml, run_command
from famx.contracts import contracts
from famx.contracts._outcomes import Outcome, configured_part, run_contracts, summary
from famx.notation import UserError, suggest
from famx.registry import HOOK, ROOMS, load, load_file, names

STYLES = {"kept": "green", "exempt": "yellow", "broken": "red"}

Hyperparameters = dict[str, Any]


def main(words: list[str]) -> int:
    """Prints each contract's outcome and each part's summary; returns 2 if a contract is broken."""
    parser = Parser(
        prog="python -m famx.check",
        description="Checks which contracts of its room a part breaks, and where.",
    )
    parser.add_argument(
        "words",
        metavar="PART",
        nargs="+",
        help="a file of your own, or room=name; room.key=value sets a hyperparameter",
    )
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)  # many small tensors: a second thread costs more than it saves
    load("famx")

    # all parts are built before any is checked, so that a typo is reported at once
    choices, settings = _parse(arguments.words)
    parts = {}
    for room, name in choices:
        parts[room, name] = configured_part(room, name, settings.get(room, {}))

    # one line per contract, then one sentence per part
    console = Console(highlight=False, soft_wrap=True, markup=False)
    outcomes = {}
    for (room, name), part in parts.items():
        console.print(f"{room}={name}: {len(contracts(room))} contracts", style="bold")
        outcomes[room, name] = _check_part(console, room, name, part)
    for (room, name), part_outcomes in outcomes.items():
        console.print(f"{room}={name} {summary(part_outcomes)}")
    is_broken = any(
        outcome.state == "broken"
        for part_outcomes in outcomes.values()
        for outcome in part_outcomes
    )
    return 2 if is_broken else 0


def _parse(words: list[str]) -> tuple[list[tuple[str, str]], dict[str, Hyperparameters]]:
    """Parses the words into (room, name) of each part, and the settings of each room.

    Raises:
        UserError: a word is neither a part, nor a file of parts, nor a setting of such a part.
    """
    # rooms are recognised first, since file names too may have dots and equals signs
    choices: list[tuple[str, str]] = []
    settings: dict[str, Hyperparameters] = {}
    for word in words:
        key, _, value = word.partition("=")
        room, _, hyperparameter = key.partition(".")
        if room in ROOMS and value and hyperparameter:
            settings.setdefault(room, {})[hyperparameter] = parse_yaml(key, value)
        elif room in ROOMS and value:
            choices.append((room, value))
        elif Path(word).is_file() or not (value or key in ROOMS):
            choices += load_file(word)
        elif key in ROOMS:
            raise UserError(f"{key} is a room: give {key}=NAME{suggest('', names(key))}")
        else:
            raise UserError(f"{word}: no such room{suggest(room, ROOMS)}")
    for room, name in choices:
        if room == HOOK:
            raise UserError(f"{name} is a hook of the trainer, for which there are no contracts")
    # a setting of a room that is not checked is a typo
    for room, hyperparameters in settings.items():
        if room not in dict(choices):
            raise UserError(
                f"{room}.{next(iter(hyperparameters))} is set, "
                f"but no part of the room {room} is checked"
            )
    return choices, settings


def _check_part(console: Console, room: str, name: str, part: type) -> list[Outcome]:
    """Runs the contracts of a part and prints a line for each."""
    outcomes: list[Outcome] = []
    for outcome in run_contracts(
        part, contracts(room), lambda contract: console.status(f"{room}={name}: {contract}")
    ):
        message = outcome.message
        # one error often breaks many contracts: its message is printed once
        for earlier in outcomes:
            if earlier.state == "broken" and earlier.message == message:
                message = f"same error as {earlier.contract}"
                break
        outcomes.append(outcome)
        line = f"{outcome.contract}: {message}" if message else outcome.contract
        console.print(f"  {outcome.state:8}", end="", style=STYLES[outcome.state])
        console.print(line)
    return outcomes


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
