"""Commands in processes of their own: two that train together, a sweep, and scores of a run."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tones import reported_values, tones_config, tones_words

from famx.experiment.run import run

pytestmark = pytest.mark.slow


def execute(*words, **environment):
    """Returns the finished process of `python ...`."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=300
    )


@pytest.mark.parametrize(
    "word", ["frontend.normalize=utterance", "frontend.normalize=global", "task.consistency=0.2"]
)
def test_two_processes_report_the_losses_of_one(word, corpus, tmp_path):
    # Muon, the default, rounds to bfloat16, which enlarges differences of rounding
    words = ["optim=adamw", "layer.dropout=0", "trainer.max_steps=30", "trainer.log_every=1", word]
    losses = []
    for n_processes in (1, 2):
        folder = tmp_path / str(n_processes)
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={n_processes}"]
        launch += ["--master-port=0", "--standalone", "-m", "famx.train"]
        training = tones_words(corpus, *words, f"hydra.run.dir={folder}")
        result = execute(*launch, *training, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        losses.append(list(reported_values(folder, "train/loss").values()))
    assert len(losses[0]) == 30
    # sums over processes are rounded in another order, and statistics add that up
    rtol = 1e-4 if word == "frontend.normalize=global" else 1e-5
    np.testing.assert_allclose(losses[0], losses[1], rtol=rtol)


def test_every_block_and_layer_trains_on_two_processes_as_on_one():
    # dependence on the batch, such as feedback from the loss, would differ by process
    script = Path(__file__).with_name("zoo_processes.py")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    outputs = []
    for launcher in ([], launch):
        result = execute(*launcher, script, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        outputs.append(json.loads(result.stdout))
    alone, shared = outputs
    for part, expected in alone.items():
        np.testing.assert_allclose(shared[part], expected, rtol=2e-5, err_msg=part)


def test_sweep_trains_a_run_of_each_combination(corpus, tmp_path):
    words = ["trainer.max_steps=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    sweep = ["optim=fam,adamw", "seed=0,1"]
    result = execute("-m", "famx.train", "-m", *tones_words(corpus, *words, *sweep))
    assert result.returncode == 0, result.stderr
    names = [path.parent.name for path in tmp_path.rglob("config.yaml")]
    assert len(names) == 4
    assert all("optim=" in name and "seed=" in name for name in names)
    # the sweep prints the command that compares its runs
    (command, *_) = [line for line in result.stdout.splitlines() if "famx.compare" in line]
    comparison = execute(*shlex.split(command)[1:])
    assert comparison.returncode == 0, comparison.stderr
    assert "optim=adamw" in comparison.stdout


def test_evaluate_and_transcribe_work_from_the_command_line(corpus, tmp_path):
    folder = tmp_path / "run"
    run(tones_config(corpus), folder)

    evaluated = execute("-m", "famx.evaluate", folder, "--split", "dev")
    assert evaluated.returncode == 0
    assert "WER" in evaluated.stdout
    assert (folder / "scores.dev.json").is_file()

    file = corpus / "test0.wav"
    transcribed = execute("-m", "famx.transcribe", folder, file, "decode=ctc_greedy")
    assert transcribed.returncode == 0
    assert transcribed.stdout.startswith(f"{file}\t")

    refused = execute("-m", "famx.evaluate", folder, "decode=lm_greedy")
    assert refused.returncode == 2
    assert "decode=ctc_greedy" not in refused.stdout
    refused = execute("-m", "famx.evaluate", tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
