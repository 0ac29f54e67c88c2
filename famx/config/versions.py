"""The differences between Hydra 1.3 with OmegaConf 2.3 and Hydra 1.4 with OmegaConf 2.4."""

import inspect
from collections.abc import Callable
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

IS_NEW = "replace" in inspect.signature(ConfigStore.store).parameters
# 1.4 warns where a name is stored again without `replace`, and where a version of Hydra is given
REPLACE: dict[str, Any] = {"replace": True} if IS_NEW else {}
VERSION_BASE: dict[str, Any] = {} if IS_NEW else {"version_base": "1.3"}


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """Lets configs call a function as `${name:argument}`; replaces one of the same name."""
    if IS_NEW:
        OmegaConf.register_resolver(name, resolver, replace=True)  # type: ignore[call-arg]
    else:
        OmegaConf.register_new_resolver(name, resolver, replace=True)
