"""Faults of the machine during a run: each ends it with one sentence, and it can be continued."""

import errno
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from famx.training import checkpoint
from famx.training.trainer import Trainer

TEXT = (
    *("task=lm", "data=text", "data.path=text.txt", "data.block=32", "trainer.device=cpu"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=1", "trainer.threads=1"),
    *("trainer.max_steps=4", "trainer.save_every=2", "trainer.eval_every=2"),
    *("trainer.log_every=1", "probe=light", "optim=fam", "hydra.run.dir=run"),
)
# parts of the names of all files that a run opens for writing; TensorBoard's are in test_conf
WRITES = (
    *(".lock", ".config.yaml.tmp", ".tokenizer.json.tmp", ".data.json.tmp", ".groups.tsv.tmp"),
    *(".recordings.json.tmp", ".identity.json.tmp", "provenance.jsonl", "metrics.jsonl"),
    *("famx.log", "step-2.tmp/state.json", "step-2.tmp/manifest.json"),
    *("step-4.tmp/state.json", ".scores.test.json.tmp", ".result.json.tmp"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# a hook cannot be removed: file name -> error number
REFUSED: dict[str, int] = {}


def refuse_write(event, arguments):
    if event != "open" or not REFUSED:
        return
    path, mode, flags = arguments
    is_writing = (flags or 0) & WRITING or set(mode or "") & set("wax+")
    for name, number in REFUSED.items():
        if is_writing and isinstance(path, str | os.PathLike) and name in os.fspath(path):
            raise OSError(number, os.strerror(number), os.fspath(path))


sys.addaudithook(refuse_write)


@pytest.fixture
def continued(command, tmp_path):
    """Returns a function that continues a run, or begins anew where nothing was saved."""

    def finish():
        folder = tmp_path / "run"
        if any(folder.glob("checkpoints/step-*")):
            words = ("trainer.max_steps=5", "loader.workers=0")
            finished = command("train", "resume=run", *words)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            finished = command("train", *TEXT, "trainer.max_steps=5")
        assert finished.status == 0, finished.err
        assert checkpoint.load(folder / "checkpoints")["step"] == 5

    return finish


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("name", WRITES)
def test_disk_that_is_full_or_read_only_at_a_write(name, number, command, continued, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(REFUSED, name, number)
        finished = command("train", *TEXT)
    assert finished.status == 2
    assert os.strerror(number) in finished.sentence
    continued()


@pytest.mark.parametrize("size", [0, 300, 3_000, 30_000])
def test_limit_of_the_size_of_files(size, command, continued):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        finished = command("train", *TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert finished.status == 2
    assert "too large" in finished.sentence.lower()
    continued()


@pytest.mark.parametrize("n_handles", range(3))
def test_limit_of_open_files(n_handles, command, continued):
    # the system gives the lowest number that is free, and the limit is one above the highest
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + n_handles, limits[1]))
    try:
        finished = command("train", *TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert finished.status == 2
    assert "Too many open files" in finished.sentence
    continued()


def execute(folder, *words):
    """Returns the finished process of `python ...` in a folder."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


# in another process, whose limit of memory ends with it
OUT_OF_MEMORY = """\
import resource, sys
import famx.train
from famx.config.command import run_command
from famx.training.trainer import Trainer

train_step = Trainer.train_step

def train_step_with_limit(self, batches):
    if self.step == 0:
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, size + 2**20))
    train_step(self, batches)

Trainer.train_step = train_step_with_limit
run_command(famx.train.main)
"""


@pytest.mark.slow
def test_memory_that_is_exhausted_while_a_run_trains(continued, tmp_path):
    words = [*TEXT, "model.d_model=512", "model.n_layers=8"]
    finished = execute(tmp_path, "-c", OUT_OF_MEMORY, *words)
    assert finished.returncode == 2, finished.stderr
    [sentence] = finished.stderr.strip().splitlines()
    assert "the memory is exhausted (" in sentence
    continued()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "name", "message"),
    [
        (1, "SIGSTOP", "process 1 of 2 (rank 1) has not answered for 8 s: resume= continues"),
        (1, "SIGKILL", "another of the 2 processes has ended; "),
        (0, "SIGKILL", "another of the 2 processes has ended; "),
    ],
)
def test_process_of_torchrun_that_stops_or_is_killed(rank, name, message, continued, tmp_path):
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    script = Path(__file__).with_name("silent_process.py")
    finished = execute(tmp_path, *launch, script, rank, name, *TEXT)
    assert finished.returncode
    [sentence] = [line for line in finished.stderr.splitlines() if line.startswith("famx: ")]
    assert message in sentence
    # those of torchrun are its own
    assert "famx/training/trainer.py" not in finished.stderr
    assert checkpoint.load(tmp_path / "run" / "checkpoints")["step"] == 2
    continued()


@pytest.mark.slow
def test_process_that_reads_ahead_is_killed(command, continued, monkeypatch):
    train_step = Trainer.train_step

    def kill_workers(self, batches):
        if self.step == 2:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()
        train_step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", kill_workers)
        words = ("loader.workers=1", "loader.batch_tokens=64", "trainer.max_steps=400")
        finished = command("train", *TEXT, *words)
    assert finished.status == 2
    assert "process that reads ahead has ended" in finished.sentence
    continued()
