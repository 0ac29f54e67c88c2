"""The identity of a run: what its result depends on, besides chance on other hardware.

Two runs are the same experiment if they have the same essential config, the same code and the same
data. The code is compared file by file, so that a difference can be named.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from famx.training.run_dir import RunDir

Config = Mapping[str, Any]

NEUTRAL = {
    "trainer": ("device", "threads", "log_every", "save_every"),
    "loader": ("workers", "cache_gb"),
}
"""Options that cannot change a result, by section."""
UNUSED = ("name", "resume", "sweep", "check", "logger", "pictures")
"""Options that name, arrange, check or report runs."""
PACKAGE = Path(__file__).parent.parent
OTHER_FOLDERS = ("analysis", "contracts")
"""Folders of the package that no training executes."""
OTHER_FILES = ("experiment/program.py", "experiment/publication.py")
"""Further files that no training executes, but the export of a run."""
COMMANDS = (
    *("__main__", "check", "compare", "completion", "evaluate", "export", "generate", "panel"),
    *("parts", "replay", "spectra", "train", "transcribe", "translate"),
)
"""Modules of the commands, which do not change what a training computes."""


def essential_config(config: Config) -> dict[str, Any]:
    """Returns a resolved config without the options that cannot change a result."""
    essential = {key: value for key, value in config.items() if key not in UNUSED}
    for section, keys in NEUTRAL.items():
        options = config.get(section, {})
        essential[section] = {key: x for key, x in options.items() if key not in keys}
    return essential


def with_neutral_options(config: Config, current: Config) -> dict[str, Any]:
    """Returns a stored config with the neutral options of the current command."""
    result = dict(config)
    for section, keys in NEUTRAL.items():
        neutral = {key: current[section][key] for key in keys if key in current[section]}
        result[section] = {**config[section], **neutral}
    return result


def first_difference(config: Config, stored: Config, prefix: str = "") -> str | None:
    """Returns the first option that differs, as `key=value, stored value`; None if none does."""
    for key in dict.fromkeys([*config, *stored]):
        value = config.get(key)
        stored_value = stored.get(key)
        if value == stored_value:
            continue
        if isinstance(value, Mapping) and isinstance(stored_value, Mapping):
            return first_difference(value, stored_value, f"{prefix}{key}.")
        return f"{prefix}{key}={value}, stored {stored_value}"
    return None


@functools.cache
def code_digests(package: Path = PACKAGE) -> dict[str, str]:
    """Returns a digest of each file of the package that a training executes, by path."""
    digests = {}
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        is_command = len(path.parts) == 1 and path.stem in COMMANDS
        is_other = path.parts[0] in OTHER_FOLDERS or path.as_posix() in OTHER_FILES
        if not is_other and not is_command:
            digests[path.as_posix()] = _digest(file.read_bytes())
    return digests


def changed_files(code: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Returns the files that differ, or that only one of both has."""
    return sorted(path for path in {*code, *other} if code.get(path) != other.get(path))


def identity(config: Config) -> dict[str, Any]:
    """Returns the identity of a run of a resolved config with the code that is running."""
    text = json.dumps(essential_config(config), sort_keys=True, default=str)
    return {"config": _digest(text.encode()), "code": code_digests()}


def read_code(run_dir: RunDir) -> dict[str, str]:
    """Returns the digests of the code that a run was trained with; empty if it stored none."""
    code = run_dir.read_record(run_dir.identity_file).get("code")
    return code if isinstance(code, dict) else {}


def list_files(files: Iterable[str], limit: int = 3) -> str:
    """Returns the first files of a list, and the number of the remaining ones."""
    names = list(files)
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
