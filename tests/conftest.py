"""All parts are registered, and every test begins with the same seed, on one thread."""

import pytest
import torch

from famx.registry import load

load("famx")
torch.set_num_threads(1)  # many small tensors: a second thread costs more than it saves


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
