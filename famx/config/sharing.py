"""Composes the configs of a sweep, whose runs share what Hydra reads and merges for all of them."""

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from famx.config.versions import IS_NEW


class SharingLoader(ConfigLoaderImpl):
    """Hydra's loader, which composes runs of a sweep that differ in values alone from one config.

    Hydra reads and merges the files of each run anew, some 0.1 s. Values such as `seed=1` or
    `optim.lr=0.1` do not choose files; they are set in a copy of the config without them.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.shared: dict[tuple[str, ...], Any] = {}
        self._shares = False

    def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> Any:
        """Composes a run of a sweep."""
        self._shares = True
        try:
            return super().load_sweep_config(master_config, sweep_overrides)
        finally:
            self._shares = False

    def _load_configuration_impl(self, *arguments: Any, **options: Any) -> Any:
        words = options["overrides"]
        # Hydra 1.4 stores more of the words, so there each run is composed alone
        overrides = _parse(words) if self._shares and not IS_NEW else None
        if overrides is None:
            return super()._load_configuration_impl(*arguments, **options)
        # the files, which only other words choose
        others = tuple(word for word, x in zip(words, overrides, strict=True) if not _is_setting(x))
        if others not in self.shared:
            alone = options | {"overrides": [*others]}
            self.shared[others] = super()._load_configuration_impl(*arguments, **alone)
        config = copy.deepcopy(self.shared[others])
        # the values, and the words that Hydra stores
        self._apply_overrides_to_config([x for x in overrides if _is_setting(x)], config)
        of_run = [x for x in overrides if not x.is_hydra_override()]
        config.hydra.overrides.task = [x.input_line for x in of_run]
        form = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = config_loader_impl.get_overrides_dirname(
            overrides=of_run,
            kv_sep=form.kv_sep,
            item_sep=form.item_sep,
            exclude_keys=form.exclude_keys,
        )
        return config


def _parse(words: Sequence[str]) -> list[Override] | None:
    """Returns the overrides; None if their order may matter beyond that of settings alone."""
    overrides = OverridesParser.create().parse_overrides(list(words))
    for override in overrides:
        is_plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        # a mapping sets several options at once
        if not is_plain or override.is_sweep_override() or isinstance(override.value(), dict):
            return None
    return overrides


def _is_setting(override: Override) -> bool:
    """Returns whether an override sets a single value of a run, and chooses no file."""
    key = override.key_or_group
    is_value = key == "seed" or ("." in key and "/" not in key)
    return is_value and not override.is_hydra_override() and override.package is None
