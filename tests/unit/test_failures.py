"""Messages of failures of the machine: exhausted memory, and processes that have ended."""

import runpy
import sys

import pytest
from torch import distributed

from famx.training.heartbeat import is_loss_of_a_process
from famx.training.run_dir import RunDir

REMEDIES = {
    ("train", "resume=run"): "use a smaller loader.batch_seconds or loader.batch_tokens",
    ("evaluate", "run"): "use trainer.device=cpu, or a smaller decode.beam",
    ("transcribe", "run", "a.wav"): "use a shorter --window, or trainer.device=cpu",
    ("generate", "run", "--prompt", "a"): "use fewer --samples, or trainer.device=cpu",
    ("export", "run", "--to", "out"): "it needs a machine with more memory",
}
# messages of gloo and NCCL
LOSSES = (
    "[enforce fail at gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
    "Application timeout caused pair closure: Connection reset by peer",
    "NCCL error in: ProcessGroupNCCL.cpp:2, remote process exited or there was a network error",
)
OTHERS = (
    "NCCL error in: ProcessGroupNCCL.cpp:1, invalid usage (run with NCCL_DEBUG=WARN for details)",
    "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error: out of memory",
    "shape '[2, 3]' is invalid for input of size 5",
)


@pytest.mark.parametrize("words", REMEDIES)
def test_advice_for_exhausted_memory_fits_the_command(words, monkeypatch, tmp_path, capsys):
    def fail(run_dir, *remedy):
        raise MemoryError

    # what every command does first with a run
    for name in ("load_config", "require_unedited", "require_checkpoints"):
        monkeypatch.setattr(RunDir, name, fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(words))
    monkeypatch.delitem(sys.modules, f"famx.{words[0]}", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"famx.{words[0]}", run_name="__main__")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"famx: the memory is exhausted (MemoryError): {REMEDIES[words]}")
    assert ("loader." in error) == (words[0] == "train")


def test_only_the_loss_of_another_process_counts_as_one():
    for kind in (RuntimeError, distributed.DistBackendError):
        assert all(is_loss_of_a_process(kind(message)) for message in LOSSES)
        assert not any(is_loss_of_a_process(kind(message)) for message in OTHERS)
    assert is_loss_of_a_process(distributed.DistNetworkError("recvValue failed"))
