"""Contracts: what every part of a room guarantees. pytest and `famx.check` run them.

A room's module holds `CONTRACT`, a tuple of functions. Each takes the class of a part, builds it
and raises `ContractError` where the part breaks the guarantee that the function is named after.
`ESSENTIAL` are those of them without which a result would be wrong and no error would show it;
training requires them of a user's part (famx/experiment/user_parts.py).
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jaxtyping
from torch import Tensor

from famx.nn.hooks import HasExemptions
from famx.registry import select_context

# any class, since each room has a base class of its own
Contract = Callable[[type[Any]], None]
Built = TypeVar("Built")


class ContractError(Exception):
    """Raised where a part breaks a guarantee of its room; the message says where, in numbers."""


def require(condition: object, message: str) -> None:
    """Raises `ContractError` unless the condition holds, also under `python -O`."""
    if not condition:
        raise ContractError(message)


def require_finite(*outputs: Tensor) -> tuple[Tensor, ...]:
    """Returns the outputs unchanged, to be compared.

    Raises:
        ContractError: an output is not finite, which no other guarantee is to be blamed for.
    """
    for output in outputs:
        require(output.isfinite().all(), "an output is not finite")
    return outputs


def contracts(room: str) -> dict[str, Contract]:
    """Returns the contracts of a room by name, in the order of its `CONTRACT`."""
    module = importlib.import_module(f"famx.contracts.{room}")
    return {contract.__name__: contract for contract in module.CONTRACT}


def essential_contracts(room: str) -> dict[str, Contract]:
    """Returns the contracts of a room by name that training requires of a user's part."""
    module = importlib.import_module(f"famx.contracts.{room}")
    return {contract.__name__: contract for contract in module.ESSENTIAL}


def exemptions(part: type) -> Mapping[str, str]:
    """Returns the guarantees that a part does not give: contract -> reason."""
    return part.exempt if isinstance(part, HasExemptions) else {}


def applicable(room: str, part: type) -> dict[str, Contract]:
    """Returns the contracts of a room without those that the part is exempt from."""
    exempt = exemptions(part)
    return {name: contract for name, contract in contracts(room).items() if name not in exempt}


def build_for_test(part: Callable[..., Built], **context: object) -> Built:
    """Builds a part with the context that its signature names, as training does.

    Raises:
        UserError: a parameter of the part has no default and is not in the context.
    """
    return part(**select_context(part, context))


@contextmanager
def without_shape_hook() -> Iterator[None]:
    """Turns off jaxtyping's checks, which a compiler would have to trace."""
    was_disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    # restored after an error too, since the checks that follow rely on it
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", was_disabled)
