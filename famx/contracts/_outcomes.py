"""Runs the contracts of a part and collects their outcomes, also of a part with other settings."""

import contextlib
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from famx.config.schema import complete_choice
from famx.contracts import Contract, ContractError, contracts, exemptions
from famx.notation import UserError, describe_exception, suggest
from famx.registry import get


class Outcome(NamedTuple):
    """The outcome of one contract.

    Args:
        contract: name of the contract.
        state: kept, exempt or broken.
        message: where the part breaks it, or why it is exempt.
        is_crash: whether another error than the contract's own has ended it.
    """

    contract: str
    state: str
    message: str = ""
    is_crash: bool = False


def configured_part(room: str, name: str, settings: Mapping[str, Any]) -> type:
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
    checked = complete_choice(room, {"name": name} | dict(settings))
    overrides = {}
    for key in settings:
        value = checked[key]
        overrides[key] = tuple(value) if isinstance(value, list) else value  # configs have no tuple
    init = functools.partialmethod(part.__init__, **overrides)
    return type(name, (part,), {"__init__": init, "__module__": part.__module__})


def run_contracts(
    part: type,
    selected: Mapping[str, Contract],
    status: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Iterator[Outcome]:
    """Runs contracts of a part, except those that it is exempt from.

    Args:
        selected: the contracts by name.
        status: returns a context for the name of the contract that runs.
    """
    exempt = exemptions(part)
    for name, contract in selected.items():
        reason = exempt.get(name)
        if reason:
            yield Outcome(name, "exempt", one_line(reason))
            continue
        # the outcome must not depend on the contracts that ran before
        torch.manual_seed(0)
        try:
            with status(name):
                contract(part)
        except Exception as error:
            is_sentence = isinstance(error, ContractError | UserError) and bool(str(error))
            file = inspect.getfile(part)
            message = str(error) if is_sentence else describe_exception(error, file)
            is_crash = not isinstance(error, ContractError)
            yield Outcome(name, "broken", one_line(message), is_crash)
        else:
            yield Outcome(name, "kept")


def summary(outcomes: Sequence[Outcome]) -> str:
    """Summarises the outcomes of a part as the end of a sentence."""
    n_contracts = len(outcomes)
    broken = [outcome for outcome in outcomes if outcome.state == "broken"]
    exempt = [outcome.contract for outcome in outcomes if outcome.state == "exempt"]
    # nothing is broken
    if not broken:
        exception = f", except {', '.join(exempt)}, from which it is exempt" if exempt else ""
        return f"keeps all of its {n_contracts} contracts{exception}"
    # a message that several contracts share points to one cause
    text = f"breaks {len(broken)} of its {n_contracts} contracts"
    ((message, count),) = Counter(outcome.message for outcome in broken).most_common(1)
    if count > 2:
        number = "all" if count == len(broken) else count
        return f"{text}, {number} of them with the same error: {message}"
    return f"{text}: {', '.join(outcome.contract for outcome in broken)}"


def one_line(text: str) -> str:
    """Returns a text with single spaces in place of line breaks."""
    return " ".join(text.split())
