"""Hydra's and OmegaConf's errors, in one sentence for a person."""

import re
from collections.abc import Mapping
from typing import Any

from famx.notation import UserError
from famx.registry import PARTS, hyperparameters, suggest


def explain_hydra_error(error: Exception, config: Mapping[str, Any]) -> UserError:
    """Hydra's and OmegaConf's own errors in one sentence; `config` is the composition without the words at fault."""
    told = re.sub(r"\s+", " ", str(error)).strip()
    if match := re.search(r"Ambiguous value for argument '(.*?)'", told):
        return UserError(f"{match[1]} names several values, which only a sweep takes: give -m too")
    if word := getattr(error, "override", None):
        quoted = "a value with spaces or brackets wants quotes of its own, 'KEY=\"VALUE\"'"
        return UserError(f"{word} cannot be read as KEY=VALUE; {quoted}")
    cause = re.sub(r"\s+", " ", str(error.__cause__ or "")).strip()
    if options := getattr(error, "options", None):
        room, _, name = error.missing_cfg_file.rpartition("/")
        return UserError(
            f"{room}={name}: no such part{suggest(name, [o for o in options if o != 'usual'])}"
        )
    if match := re.search(r"Could not (?:override|delete)(?: from config\.)? '([\w.@/]+)", told):
        *above, key = match[1].split(".")
        node, path = config, []
        for step in above:
            if step not in node:
                key = step  # the first that there is not
                break
            node, path = node[step] if isinstance(node[step], Mapping) else {}, [*path, step]
        place = ".".join([*path, key])
        able = (
            [name for name, part in PARTS.get(path[0], {}).items() if key in hyperparameters(part)]
            if path
            else []
        )
        if node.get("name") == "usual" and able:
            return UserError(
                f"{place} is of a part that is not chosen yet: give {path[0]}={' or '.join(able)} too"
            )
        owner = f"{path[0]}={node['name']}" if path and "name" in node else ".".join(path) or "famx"
        if key in node:
            return UserError(
                f"not every {path[0]} of the sweep has {place}: {', '.join(able)} have it"
            )
        known = [k for k in node if k != "name"] if path else [*node, "experiment"]
        return UserError(f"{owner} has no {place}{suggest(key, known)}")
    if match := re.search(r"override ([\w.]+)=(.*?) ?: (.*)", f"{told} : {cause}"):
        reason = re.sub(r" full_key:.*", "", match[3])
        return UserError(f"{match[1]}={match[2]}: {reason}")
    return UserError(told)
