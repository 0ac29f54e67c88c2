"""Every part of every room satisfies the contracts of its room."""

import pytest

from famx.contracts import contracts, exemptions
from famx.registry import PARTS, ROOMS, names

CASES = []
for room in ROOMS:
    for name in names(room):
        CASES.extend((room, name, contract) for contract in contracts(room))


@pytest.mark.parametrize(("room", "name", "contract"), CASES)
def test_part_satisfies_contract(room, name, contract):
    part = PARTS[room][name]
    reason = exemptions(part).get(contract)
    if reason:
        pytest.skip(f"{room}={name} is exempt from {contract}: {reason}")
    contracts(room)[contract](part)
