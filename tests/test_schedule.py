import pytest

from famx.laws import kept, laws
from famx.registry import get, names


@pytest.mark.parametrize("law", laws("schedule"))
@pytest.mark.parametrize("name", names("schedule"))
def test_keeps_the_laws(name, law):
    part = get("schedule", name)
    if law in kept("schedule", part):
        laws("schedule")[law](part)
