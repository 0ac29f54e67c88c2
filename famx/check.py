"""Checks a part against the contracts of its room: python -m famx.check my_block.py"""

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from famx.config.command import Parser, parse_yaml, run_command
from famx.config.schema import complete_choice
from famx.contracts import ContractError, contracts, exemptions
from famx.notation import UserError, describe_exception, suggest
from famx.registry import HOOK, ROOMS, get, load, load_file, names

STYLES = {"kept": "green", "exempt": "yellow", "broken": "red"}

Hyperparameters = dict[str, Any]


class Outcome(NamedTuple):
    """The outcome of one contract.

    Args:
        contract: name of the contract.
        state: kept, exempt or broken.
        message: where the part breaks it, or why it is exempt.
    """

    contract: str
    state: str
    message: str = ""


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
        parts[room, name] = _configured_part(room, name, settings.get(room, {}))

    # one line per contract, then one sentence per part
    console = Console(highlight=False, soft_wrap=True, markup=False)
    outcomes = {}
    for (room, name), part in parts.items():
        console.print(f"{room}={name}: {len(contracts(room))} contracts", style="bold")
        outcomes[room, name] = _check_part(console, room, name, part)
    for (room, name), part_outcomes in outcomes.items():
        console.print(f"{room}={name} {_summary(part_outcomes)}")
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


def _configured_part(room: str, name: str, settings: Hyperparameters) -> type:
    """Returns the class of a part, with the settings as its defaults.

    Raises:
        UserError: the part or hyperparameter does not exist, or `exempt` names a contract that the
            room does not have.
    """
    part = get(room, name)
    # a misspelt exemption would have no effect
    known = contracts(room)
    for contract in exemptions(part):
        if contract not in known:
            raise UserError(
                f"{room}={name} is exempt from {contract}, which is not a contract of its room"
                f"{suggest(contract, known)}"
            )
    # a subclass with other defaults, since contracts build the part from its class
    if not settings:
        return part
    checked = complete_choice(room, {"name": name} | settings)
    overrides = {}
    for key in settings:
        value = checked[key]
        overrides[key] = tuple(value) if isinstance(value, list) else value  # configs have no tuple
    init = functools.partialmethod(part.__init__, **overrides)
    return type(name, (part,), {"__init__": init, "__module__": part.__module__})


def _check_part(console: Console, room: str, name: str, part: type) -> list[Outcome]:
    """Runs the contracts of a part and prints a line for each."""
    outcomes: list[Outcome] = []
    for outcome in _run_contracts(console, room, name, part):
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


def _run_contracts(console: Console, room: str, name: str, part: type) -> Iterator[Outcome]:
    """Runs the contracts of a room, except those that the part is exempt from."""
    exempt = exemptions(part)
    for contract_name, contract in contracts(room).items():
        reason = exempt.get(contract_name)
        if reason:
            yield Outcome(contract_name, "exempt", _one_line(reason))
            continue
        # the outcome must not depend on the contracts that ran before
        torch.manual_seed(0)
        try:
            with console.status(f"{room}={name}: {contract_name}"):
                contract(part)
        except Exception as error:
            message = describe_exception(error, inspect.getfile(part))
            if isinstance(error, ContractError | UserError) and str(error):
                message = str(error)
            yield Outcome(contract_name, "broken", _one_line(message))
        else:
            yield Outcome(contract_name, "kept")


def _summary(outcomes: list[Outcome]) -> str:
    """Summarises the outcomes of a part as the end of a sentence."""
    n_contracts = len(outcomes)
    broken = [outcome for outcome in outcomes if outcome.state == "broken"]
    exempt = [outcome.contract for outcome in outcomes if outcome.state == "exempt"]
    # nothing is broken
    if not broken:
        exception = f", except {', '.join(exempt)}, from which it is exempt" if exempt else ""
        return f"keeps all of its {n_contracts} contracts{exception}"
    # a message that several contracts share points to one cause
    summary = f"breaks {len(broken)} of its {n_contracts} contracts"
    ((message, count),) = Counter(outcome.message for outcome in broken).most_common(1)
    if count > 2:
        number = "all" if count == len(broken) else count
        return f"{summary}, {number} of them with the same error: {message}"
    return f"{summary}: {', '.join(outcome.contract for outcome in broken)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
