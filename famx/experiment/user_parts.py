"""Checks the parts of a user's files before they train: those contracts that a result rests on.

A block that sees the future trains to a low loss, and no error shows that it is worth nothing. A
part that has passed is checked again only after a change of its file, of its options, or of famx.
"""

import contextlib
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from famx import files
from famx.contracts import essential_contracts, exemptions
from famx.contracts._outcomes import Outcome, configured_part, run_contracts, summary
from famx.data._rendering import cache_folder
from famx.experiment.resolve import is_on, resolve
from famx.model import layer_choices
from famx.notation import UserError
from famx.registry import HOOK, LAYER_ROOMS, PARTS, ROOMS, get
from famx.training.hooks import Hook
from famx.training.identity import PACKAGE, code_digests

FOLDER = "checked-parts"
# digests of what this process has checked
_checked: set[str] = set()

log = logging.getLogger(__name__)


def is_checked(config: Mapping[str, Any]) -> bool:
    """Returns whether a run's parts outside of famx are checked: `check` of its config.

    Raises:
        UserError: it is neither on nor off.
    """
    return is_on(config, "check")


def check_user_parts(config: Mapping[str, Any]) -> None:
    """Checks the parts of a run that are defined outside of famx, each once.

    Raises:
        UserError: a part breaks a contract, or is exempt from one that the task needs.
    """
    choices = list(_user_choices(config))
    # of several processes, the others wait for the first one
    is_first_process = int(os.environ.get("RANK", 0)) == 0
    if not is_checked(config) or not choices or not is_first_process:
        return
    causal = get("task", config["task"]["name"]).causal
    for room, choice in choices:
        _check_part(room, choice, causal)


def _user_choices(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields room and choice of each of a run's parts that is defined outside of famx."""
    # most runs have none, and resolving samples layers
    outside = {
        (room, name) for room in ROOMS for name in PARTS.get(room, {}) if _is_outside(room, name)
    }
    if not outside:
        return
    resolved = resolve(config)
    choices = [(room, resolved[room]) for room in ROOMS if room not in LAYER_ROOMS]
    for layer in layer_choices(resolved):
        choices += [(room, layer[room]) for room in LAYER_ROOMS]
    # the optimizer that another one wraps
    choices.append(("optim", {"name": resolved["optim"].get("base")}))
    # layers mostly have the same parts
    distinct = {json.dumps(choice, sort_keys=True, default=str): choice for choice in choices}
    for room, choice in distinct.values():
        if (room, choice["name"]) in outside:
            yield room, choice


def _is_outside(room: str, name: str) -> bool:
    return not PARTS[room][name].__module__.startswith("famx.")


def _check_part(room: str, choice: Mapping[str, Any], causal: bool) -> None:
    name = choice["name"]
    # a data set is checked on the corpus of its example, not on the user's
    settings = {key: x for key, x in choice.items() if key != "name" and room != "data"}
    contracts = essential_contracts(room)
    if not causal:
        contracts.pop("causal", None)
    elif "causal" in exemptions(get(room, name)):
        raise UserError(
            f"{room}={name} is exempt from causal, but the task predicts later positions from "
            "earlier ones; check=off trains nevertheless"
        )
    digest = _digest(room, choice, list(contracts))
    if digest in _checked or _is_cached(digest):
        return

    # a part that cannot be built so small with the options of the run is checked with its defaults
    console = Console(highlight=False, soft_wrap=True, markup=False)
    with console.status(f"checking {room}={name}"), _unchanged_torch():
        outcomes = list(run_contracts(configured_part(room, name, settings), contracts))
        if any(outcome.is_crash for outcome in outcomes):
            outcomes = list(run_contracts(configured_part(room, name, {}), contracts))
    _require_sound(room, name, outcomes)
    _checked.add(digest)
    crashed = [outcome for outcome in outcomes if outcome.is_crash]
    if crashed:
        log.warning(
            "%s=%s could not be checked for %s: %s",
            room,
            name,
            ", ".join(outcome.contract for outcome in crashed),
            crashed[0].message,
        )
        return
    console.print(
        f"{room}={name} keeps what training requires (contracts checked: {len(outcomes)})"
    )
    # without a home, or with a cache that cannot be written, it is checked again
    with contextlib.suppress(OSError, UserError):
        folder = cache_folder() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest).touch()


def _require_sound(room: str, name: str, outcomes: Sequence[Outcome]) -> None:
    broken = [x for x in outcomes if x.state == "broken" and not x.is_crash]
    if not broken:
        return
    file = inspect.getfile(get(room, name))
    raise UserError(
        f"{room}={name} {summary([x for x in outcomes if not x.is_crash])}; "
        f"{broken[0].message}; python -m famx.check {file} shows all, "
        "check=off trains nevertheless"
    )


@contextlib.contextmanager
def _unchanged_torch() -> Iterator[None]:
    """Restores the random state and the number of threads, which the run sets itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small tensors: a second thread costs more than it saves
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def _is_cached(digest: str) -> bool:
    try:
        return (cache_folder() / FOLDER / digest).is_file()
    except (OSError, UserError):  # UserError: the user has no home
        return False


def _digest(room: str, choice: Mapping[str, Any], contracts: Sequence[str]) -> str:
    """Returns a digest of all that a check depends on.

    It covers the files of the part and of its base classes, the options, the contracts, and the
    versions of famx and torch.
    """
    sources = set()
    for cls in get(room, choice["name"]).__mro__:
        if not cls.__module__.startswith(("famx.", "torch.")):
            with contextlib.suppress(TypeError):  # a class without a file
                sources.add(inspect.getfile(cls))
    code = [files.digest(Path(source)) for source in sorted(sources)]
    versions = [code_digests(), code_digests(PACKAGE / "contracts"), torch.__version__]
    content = json.dumps([room, choice, contracts, code, versions], sort_keys=True, default=str)
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:32]


def build_user_hooks() -> list[Hook]:
    """Builds the hooks that files of `famx_parts=` have registered.

    Raises:
        UserError: a class is not a `Hook`.
    """
    hooks: list[Hook] = []
    for name, hook in PARTS.get(HOOK, {}).items():
        if not issubclass(hook, Hook):
            raise UserError(f"hook={name} is a {hook.__name__}, not a famx.training.hooks.Hook")
        hooks.append(hook())
    return hooks
