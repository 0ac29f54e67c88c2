"""The number of runs of a sweep that train at once: `sweep.jobs`, or what the machine has room for.

On a GPU one run may leave most of the time and memory unused. With `sweep.jobs=null` the first run
trains alone until the GPU has been measured, and the others follow, as many at once as

    n = min(memory: (total - used before) / (1.25 * memory of the run),
            time: 1 / share of the time in which the GPU computes,
            number of CPU cores).

The kernels of several processes take turns; where NVIDIA's MPS daemon runs, they overlap. On a CPU
each core trains one run.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from famx.notation import UserError
from famx.training.device import n_cores

N_SAMPLES = 10
SECONDS_PER_SAMPLE = 1.0
# a run may need more memory later, in its evaluations
MEMORY_MARGIN = 1.25


class Usage(NamedTuple):
    """Usage of a GPU: the share of the time in which it computes, and its memory in MiB."""

    busy: float
    used: float
    total: float


def uses_gpu(config: Mapping[str, Any]) -> bool:
    """Returns whether a run trains on an NVIDIA GPU."""
    return config["trainer"]["device"] in ("auto", "cuda") and torch.cuda.is_available()


def read_usage() -> Usage:
    """Reads the usage of the GPU that runs train on, by `nvidia-smi`.

    Raises:
        UserError: there is no `nvidia-smi`, or it does not report the usage.
    """
    # the first visible GPU
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = "--query-gpu=utilization.gpu,memory.used,memory.total"
    command = ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        busy, used, total = map(float, result.stdout.split(","))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(
            "sweep.jobs=null needs nvidia-smi, to measure how much of the GPU one run uses, and it "
            f"fails ({error}): sweep.jobs=N sets the number of runs"
        ) from error
    return Usage(busy / 100, used, total)


def runs_at_once(before: Usage, samples: list[Usage], cores: int) -> int:
    """Returns how many runs a GPU has room for.

    Args:
        before: its usage before the first run.
        samples: its usage while that run trains.
        cores: number of CPU cores; each run needs one.
    """
    memory = max(sample.used for sample in samples) - before.used
    busy = sum(sample.busy for sample in samples) / len(samples)
    # a share below 1 % is not measured
    by_memory = int((before.total - before.used) / (MEMORY_MARGIN * max(memory, 1)))
    by_time = round(1 / max(busy, 0.01))
    return max(1, min(by_memory, by_time, cores))


class Slots:
    """The number of runs at once.

    Args:
        jobs: the number; None for as many as this machine can keep busy.
        config: config of the first run.
        read: reads the usage of the GPU.

    Attributes:
        limit: the number of runs that may train at the moment.
        interval: seconds until the next call of `observe`; None if nothing is measured any more.

    Raises:
        UserError: the usage of the GPU cannot be read.
    """

    def __init__(
        self, jobs: int | None, config: Mapping[str, Any], read: Callable[[], Usage] = read_usage
    ):
        self.read = read
        self.samples: list[Usage] = []
        self.interval: float | None = None
        self.limit = jobs or n_cores()
        # on a GPU, one run until it has been measured
        self.has_gpu = uses_gpu(config)
        if jobs is None and self.has_gpu:
            self.limit = 1
            self.interval = SECONDS_PER_SAMPLE
            self.before = read()

    def observe(self) -> str | None:
        """Measures the GPU while the first run trains; returns a sentence once it is measured."""
        try:
            self.samples.append(self.read())
        except UserError as error:
            # the runs go on, one after the other
            self.interval = None
            return str(error)
        if len(self.samples) < N_SAMPLES:
            return None
        self.interval = None
        self.limit = runs_at_once(self.before, self.samples, n_cores())
        memory = max(sample.used for sample in self.samples) - self.before.used
        busy = sum(sample.busy for sample in self.samples) / N_SAMPLES
        return (
            f"{self.limit} runs at once: one uses {memory:,.0f} MiB of {self.before.total:,.0f}, "
            f"and the GPU {busy:.0%} of the time; {n_cores()} CPU cores, {_describe_mps()}"
        )

    def share(self, config: dict[str, Any]) -> dict[str, Any]:
        """Returns a config whose run has its share of the CPU cores, unless it sets a number."""
        cores = max(1, n_cores() // self.limit)
        sections = {"trainer": {"threads": cores}}
        if self.has_gpu:
            # the trainer itself needs a core
            sections["loader"] = {"workers": cores - 1}
        shared = dict(config)
        for section, shares in sections.items():
            values = config[section]
            missing = {key: value for key, value in shares.items() if values[key] is None}
            shared[section] = {**values, **missing}
        return shared


def _describe_mps() -> str:
    """Returns whether the kernels of several processes overlap on the GPU."""
    directory = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    if os.path.exists(os.path.join(directory, "control")):
        return "MPS is running"
    if shutil.which("nvidia-cuda-mps-control") is None:
        return "without MPS"
    return "without MPS, which nvidia-cuda-mps-control -d starts"
