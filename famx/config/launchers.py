"""The launchers of Hydra that famx lets a sweep use."""

import importlib.util
import shutil
from typing import NamedTuple

from famx.notation import UserError


class Launcher(NamedTuple):
    """A launcher of Hydra: the class that Hydra builds, and the extra of famx that installs it."""

    target: str
    extra: str = ""


_PLUGINS = "hydra_plugins.hydra_{}_launcher.{}_launcher."
LAUNCHERS = {
    "basic": Launcher("hydra._internal.core_plugins.basic_launcher.BasicLauncher"),
    "submitit_local": Launcher(_PLUGINS.format("submitit", "submitit") + "LocalLauncher", "slurm"),
    "submitit_slurm": Launcher(_PLUGINS.format("submitit", "submitit") + "SlurmLauncher", "slurm"),
    "ray": Launcher(_PLUGINS.format("ray", "ray") + "RayLauncher", "ray"),
}


def require_launcher(word: str) -> None:
    """Checks that the launcher of `hydra/launcher=NAME` can be used; accepts all other words.

    Raises:
        UserError: there is no such launcher, or it is not installed.
    """
    key, _, name = word.partition("=")
    if key != "hydra/launcher":
        return
    if name not in LAUNCHERS:
        raise UserError(f"{word}: no such launcher; choose from {', '.join(LAUNCHERS)}")
    target, extra = LAUNCHERS[name]
    if not _is_installed(target.rpartition(".")[0]):
        raise UserError(f"{word} is not installed: pip install 'famx[{extra}]'")
    if name == "submitit_slurm" and shutil.which("srun") is None:
        raise UserError(f"{word} needs Slurm, but this machine has no command srun")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
