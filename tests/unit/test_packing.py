"""The number of runs of a sweep at once."""

import os

import pytest
import torch

from famx.experiment.jobs import Reports
from famx.experiment.packing import N_SAMPLES, Slots, Usage, read_usage, runs_at_once
from famx.notation import UserError
from famx.training.device import n_cores

IDLE = Usage(0.0, 1_000, 81_000)


@pytest.fixture(autouse=True)
def machine_with_a_gpu(monkeypatch):
    """Lets torch say that there is a GPU, since these tests also run without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def config(device, threads=None, workers=None):
    return {"trainer": {"device": device, "threads": threads}, "loader": {"workers": workers}}


@pytest.mark.parametrize(
    ("busy", "memory", "cores", "expected"),
    [
        (0.12, 2_000, 16, 8),  # time: 1 / .12
        (0.12, 16_000, 16, 4),  # memory: 80,000 / (1.25 * 16,000)
        (0.12, 2_000, 4, 4),  # cores
        (0.97, 2_000, 16, 1),  # a run that fills the GPU
        (0.01, 79_000, 16, 1),  # a run that fills the memory
        (0.0, 0, 16, 16),  # nothing to measure
    ],
)
def test_scarcest_of_memory_time_and_cores_limits_the_runs_on_a_gpu(busy, memory, cores, expected):
    samples = [Usage(busy, IDLE.used + share * memory, IDLE.total) for share in (0.5, 1)]
    assert runs_at_once(IDLE, samples, cores) == expected


def test_first_run_on_a_gpu_trains_alone_until_it_is_measured():
    usages = iter([IDLE] + [Usage(0.5, 3_000, 81_000)] * N_SAMPLES)
    slots = Slots(None, config("cuda"), lambda: next(usages))
    for _ in range(N_SAMPLES - 1):
        assert slots.observe() is None
        assert slots.limit == 1
    message = slots.observe()
    assert slots.limit == min(2, n_cores())
    assert slots.interval is None
    assert f"{slots.limit} runs at once: one uses 2,000 MiB of 81,000" in message
    assert "50% of the time" in message


def test_run_trains_once_it_adds_reports_also_if_it_is_resumed(tmp_path):
    file = tmp_path / "metrics.jsonl"
    reports = Reports(tmp_path)
    assert not reports.has_grown()
    file.write_text("")
    assert not reports.has_grown()
    file.write_text("one\n")
    assert reports.has_grown()
    # a resumed run begins with its reports, and removes those that it repeats
    file.write_text("one\ntwo\nthree\n")
    reports = Reports(tmp_path)
    assert not reports.has_grown()
    file.write_text("one\n")
    assert not reports.has_grown()
    file.write_text("one\ntwo\n")
    assert reports.has_grown()
    assert reports.has_grown()


def test_sweep_goes_on_one_by_one_if_the_gpu_cannot_be_measured_any_more():
    def fail():
        raise UserError("gone")

    slots = Slots(None, config("cuda"), lambda: IDLE)
    slots.read = fail
    assert slots.observe() == "gone"
    assert slots.limit == 1
    assert slots.interval is None


def test_runs_share_the_cores_unless_they_set_a_number():
    slots = Slots(2, config("cpu"))
    share = max(1, n_cores() // 2)
    assert slots.share(config("cpu")) == config("cpu", threads=share)
    assert slots.share(config("cpu", threads=5)) == config("cpu", threads=5)
    # a GPU's runs also share the processes that read ahead
    slots = Slots(2, config("cuda"))
    assert slots.share(config("cuda")) == config("cuda", threads=share, workers=share - 1)
    assert slots.share(config("cuda", workers=7)) == config("cuda", threads=share, workers=7)


def test_cpu_trains_a_run_on_each_core():
    slots = Slots(None, config("cpu"))
    assert slots.limit == n_cores()
    assert slots.interval is None


def test_usage_comes_from_nvidia_smi_and_its_failure_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    tool = tmp_path / "nvidia-smi"
    for output, expected in (("12, 2011, 81559", Usage(0.12, 2011, 81559)), ("[N/A], 1, 2", None)):
        tool.write_text(f'#!/bin/sh\n[ "$1" = --id=3 ] && echo "{output}"\n')
        tool.chmod(0o755)
        if expected:
            assert read_usage() == expected
            continue
        with pytest.raises(UserError, match=r"sweep\.jobs=N sets the number of runs"):
            read_usage()
