"""Where a run comes from: command, code, versions, host and device."""

import platform
import shlex
import socket
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from multiprocessing import parent_process
from pathlib import Path

import torch

PACKAGES = ("torch", "hydra-core", "numpy", "tokenizers", "tensorboard")


def provenance(device: torch.device, processes: int) -> dict[str, str | int | bool | None]:
    """Returns the facts of this process that a run's config does not hold.

    `commit` and `has_changes` are those of famx's own git repository, None if famx runs from
    elsewhere.

    Args:
        device: the device of the model.
        processes: number of processes that train.
    """
    commit, has_changes = _commit()
    facts: dict[str, str | int | bool | None] = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(_command()),
        "folder": str(Path.cwd()),
        "commit": commit,
        "has_changes": has_changes,
        "famx": version_of("famx"),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        facts[package] = version_of(package)
    facts |= {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
    return facts


def _command() -> list[str]:
    """Returns the words of the command; in a process of a sweep, those of the sweep."""
    # the words of such a process itself are those of multiprocessing's server
    return sys.orig_argv if parent_process() is None else [sys.executable, *sys.argv]


def _commit() -> tuple[str | None, bool | None]:
    """Returns the commit of famx's repository and whether tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    # an installed famx may lie inside the repository of another project
    if not (root / ".git").exists():
        return None, None
    words = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    commit, dash, _ = result.stdout.strip().partition("-")
    return commit, bool(dash)


def version_of(package: str) -> str | None:
    """Returns the version of an installed package; None for a checkout that is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return str(device)
