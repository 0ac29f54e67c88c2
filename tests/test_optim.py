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


@pytest.mark.parametrize("law", laws("optim"))
@pytest.mark.parametrize("name", names("optim"))
def test_keeps_the_laws(name, law):
    part = get("optim", name)
    if law in kept("optim", part):
        laws("optim")[law](part)
