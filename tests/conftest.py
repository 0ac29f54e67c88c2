import pytest
import torch

from famx.registry import load

load("famx")
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
