"""Sweeps as a user runs them: each run in a process of its own, repeated after any end."""

import json
import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock
from tones import saved_weights, tones_words

from famx.training.run_dir import RunDir

pytestmark = pytest.mark.slow

# a user's hook that ends a process at a step of one run, once
FAULT = '''"""Sends a signal at step 4 of the run whose folder is named."""

import multiprocessing
import os
from pathlib import Path

from famx.registry import register
from famx.training.hooks import Hook, SaveCheckpoints


@register("hook")
class Fault(Hook):
    def after_step(self, trainer):
        victim = os.environ.get("VICTIM", "")
        savers = [hook for hook in trainer.hooks if isinstance(hook, SaveCheckpoints)]
        folder = savers[0].run_dir.path
        marker = Path(os.environ.get("MARKER", "/nowhere/x"))
        if trainer.step != 4 or folder.name != victim or marker.exists():
            return
        marker.touch()
        parent = multiprocessing.parent_process().pid
        if os.environ["TARGET"] == "sweep":
            os.kill(parent, int(os.environ["SIGNAL"]))
        else:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
'''


@pytest.fixture
def sweep(corpus, tmp_path):
    """Returns a function that carries out a sweep of two seeds in `tmp_path`."""
    (tmp_path / "fault.py").write_text(FAULT)

    def carry_out(*words, **environment):
        fixed = ("famx_parts=[fault.py]", "trainer.save_every=2", "trainer.threads=1")
        command = [sys.executable, "-m", "famx.train", "-m", *tones_words(corpus, *fixed)]
        return subprocess.run(
            [*command, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | environment,
            timeout=300,
        )

    return carry_out


def weights(tmp_path, folder):
    return {
        run.name: {key: value.tolist() for key, value in saved_weights(run).items()}
        for run in (tmp_path / folder).glob("seed=*")
    }


def test_sweep_that_is_repeated_finishes_only_what_is_missing(sweep, tmp_path):
    # what would run, without training it
    planned = sweep("seed=0,1", "--dry")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count(" new ") == 2
    assert not list(tmp_path.glob("outputs/*"))
    # a finished sweep, without a folder in the command
    first = sweep("seed=0,1", "sweep.jobs=2")
    assert first.returncode == 0, first.stderr
    (folder,) = tmp_path.glob("outputs/sweep_seed_*")
    assert "training" not in first.stdout
    assert "parameter groups" in (folder / "seed=0" / "output.log").read_text()
    files = {file: file.stat().st_mtime_ns for file in folder.glob("seed=*/**/*")}
    # with one more seed
    second = sweep("seed=0,1,2", "sweep.jobs=null")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("finished before") == 2
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert sorted(path.name for path in folder.glob("seed=*")) == ["seed=0", "seed=1", "seed=2"]


def test_killed_sweep_ends_as_an_undisturbed_one_when_it_is_repeated(sweep, tmp_path):
    undisturbed = sweep("seed=0,1", "hydra.sweep.dir=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    for target, name in (("run", "SIGKILL"), ("sweep", "SIGKILL"), ("sweep", "SIGTERM")):
        fault = {
            "VICTIM": "seed=0",
            "MARKER": f"{tmp_path}/{target}.{name}",
            "TARGET": target,
            "SIGNAL": str(int(signal.Signals[name])),
        }
        words = ("seed=0,1", f"hydra.sweep.dir={target}.{name}.sweep")
        disturbed = sweep(*words, **fault)
        assert (tmp_path / f"{target}.{name}").exists()
        if target == "run":
            # its sibling is trained, and the run itself is started again
            assert disturbed.returncode == 0, disturbed.stderr
            assert "seed=0 is started again: ended by SIGKILL" in disturbed.stdout
        else:
            assert disturbed.returncode != 0
            repeated = sweep(*words)
            assert repeated.returncode == 0, repeated.stderr
        assert weights(tmp_path, f"{target}.{name}.sweep") == weights(tmp_path, "undisturbed")


def test_sweep_that_cannot_run_is_refused_and_leaves_no_folder(command, tmp_path):
    for words, sentence in {
        ("sweep.jobs=0",): "sweep.jobs=0 must be between 1 and 1,024",
        ("optim.lr=0.1,1e-1",): "optim.lr=0.1,1e-1 has the value 0.1 twice",
        ("optim.lr=0.1,'0.1'",): "two runs of this sweep are optim.lr=0.1,seed=0",
        ("hydra/launcher=slurm",): "no such launcher; choose from basic, submitit_local",
        ("hydra/launcher=ray",): "hydra/launcher=ray is not installed: pip install 'famx[ray]'",
    }.items():
        finished = command("train", "-m", "task=lm", "seed=0,1", *words)
        assert finished.status == 2
        assert sentence in finished.sentence
        assert not list(tmp_path.glob("outputs/*"))


def test_refused_run_does_not_end_its_siblings(sweep, tmp_path):
    finished = sweep("seed=0,-1", "hydra.sweep.dir=sweep")
    assert finished.returncode == 2
    assert "seed=-1 is refused: seed=-1 must be an integer of at least 0" in finished.stderr
    assert len(list(tmp_path.glob("sweep/*/result.json"))) == 1


def test_run_that_cannot_be_built_is_reported_before_any_is_trained(sweep):
    planned = sweep("optim.lr=1e-3,-1", "--dry")
    assert planned.returncode == 2
    assert planned.stdout.count(" new ") == 1
    assert "lr=-1.0 must be a number, at least 0 and finite" in " ".join(planned.stdout.split())


def test_last_of_two_words_for_an_option_counts(sweep):
    planned = sweep("seed=5", "seed=0,1", "--dry")
    assert "seed=0 " in planned.stdout, planned.stderr
    assert "seed=1 " in planned.stdout


def test_folder_of_a_sweep_is_not_shared_by_mistake(sweep, tmp_path):
    assert sweep("seed=0,1", "hydra.sweep.dir=sweep").returncode == 0
    run = tmp_path / "sweep" / "seed=0"
    # another config
    other = sweep("seed=0,1", "optim.lr=0.5", "hydra.sweep.dir=sweep")
    assert other.returncode == 2
    assert "another config (optim.lr=0.5, stored 0.005)" in other.stderr
    # a result that is damaged is written again
    (run / "result.json").write_text("x")
    assert " interrupted " in sweep("seed=0,1", "hydra.sweep.dir=sweep", "--dry").stdout
    assert sweep("seed=0,1", "hydra.sweep.dir=sweep").returncode == 0
    assert json.loads((run / "result.json").read_text())["step"] == 7
    # another sweep at the same time
    with FileLock(tmp_path / "sweep" / ".lock"):
        concurrent = sweep("seed=0,1", "hydra.sweep.dir=sweep")
    assert concurrent.returncode == 2
    assert "sweep is in use: another process carries out this sweep" in concurrent.stderr
    # other code
    identity = json.loads((run / "identity.json").read_text())
    identity["code"]["model.py"] = "0"
    run_dir = RunDir(run)
    run_dir.write_files({run_dir.identity_file: json.dumps(identity)})
    unlike = sweep("seed=0,1", "hydra.sweep.dir=sweep")
    assert unlike.returncode == 2
    assert "was trained with other code (model.py)" in unlike.stderr
    mixed = sweep("seed=0,1", "hydra.sweep.dir=sweep", "sweep.mixed_code=true")
    assert mixed.returncode == 0, mixed.stderr


def test_tuning_continues_to_its_number_of_trials(sweep, tmp_path):
    words = (
        "optim.lr=tag(log,interval(1e-4,1e-2))",
        "sweep.tune=dev/loss",
        "hydra.sweep.dir=tuned",
    )
    dry = sweep(*words, "sweep.trials=2", "--dry")
    assert dry.returncode == 2
    assert "--dry cannot show the runs of sweep.tune" in dry.stderr
    assert not (tmp_path / "tuned").exists()
    mistyped = sweep(*words, "sweep.trials=1", "sweep.tune=dev/los")
    assert mistyped.returncode == 2
    assert "sweep.tune=dev/los: runs report dev/" in mistyped.stderr
    first = sweep(*words, "sweep.trials=1")
    assert first.returncode == 0, first.stderr
    second = sweep(*words, "sweep.trials=2")
    assert second.returncode == 0, second.stderr
    assert "best of 2: dev/loss" in second.stdout
    assert len(list(tmp_path.glob("tuned/trial=*/result.json"))) == 2


# a user's part that ends the sweep while the process of a run imports it
ENDING = """
import multiprocessing
import os
import signal

from famx.registry import register
from famx.training.hooks import Hook


@register("hook")
class Ending(Hook):
    pass


parent = multiprocessing.parent_process()
if parent is not None:
    os.kill(parent.pid, signal.SIGINT)
    signal.pause()
"""


def test_run_that_is_stopped_before_its_first_step_has_not_failed(sweep, tmp_path):
    (tmp_path / "ending.py").write_text(ENDING)
    stopped = sweep("seed=0,1", "famx_parts=[ending.py]")
    assert stopped.returncode == 130, stopped.stderr
    assert "seed=0 is stopped: ended by SIGTERM" in stopped.stderr
