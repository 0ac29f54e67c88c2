import pytest
import torch

from famx.laws import kept, laws
from famx.registry import get, names


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("law", laws("spectrum"))
@pytest.mark.parametrize("name", names("spectrum"))
def test_keeps_the_laws(name, law):
    part = get("spectrum", name)
    if law in kept("spectrum", part):
        laws("spectrum")[law](part)
