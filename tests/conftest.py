"""All parts are registered, and every test begins with the same seed, on one thread."""

import os
import signal

import pytest
import torch

from famx.registry import load

if not torch.cuda.is_available():
    # kernels run on the CPU; Triton reads this when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

# jobs in the background of a shell ignore these, and so would the commands that the tests stop
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

load("famx")
torch.set_num_threads(1)  # many small tensors: a second thread costs more than it saves


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Replaces the user's cache, which has results of earlier tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
