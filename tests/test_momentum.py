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


@pytest.mark.parametrize("law", laws("momentum"))
@pytest.mark.parametrize("name", names("momentum"))
def test_keeps_the_laws(name, law):
    part = get("momentum", name)
    if law in kept("momentum", part):
        laws("momentum")[law](part)
