"""Composes configs by Hydra, and refuses those that would run code or write outside of the run.

An experiment file may come from another person. Hydra itself executes what some keys of a config
name (callbacks, logging, launchers, sweepers); in famx these keys have fixed values.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import Container, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from famx.config.documents import read_yaml
from famx.config.launchers import LAUNCHERS
from famx.config.overrides import parse_override
from famx.config.schema import CONF, limited_resolvers, one_line
from famx.config.sharing import SharingLoader
from famx.config.versions import VERSION_BASE
from famx.config.words import user_folders
from famx.notation import UserError
from famx.validate import check_folder_name

NO_LOGGING = {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": False}
FIXED: dict[str, Any] = {
    "hydra.callbacks": {},
    "hydra.job_logging": NO_LOGGING,
    "hydra.hydra_logging": NO_LOGGING,
    "hydra.output_subdir": None,
    "hydra.job.env_copy": [],
    "hydra.job.env_set": {},
}
"""Options of Hydra that execute code, write files or read the environment -> their only value."""
TYPED = ("famx_parts", "resume", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
"""Options that only the command line can change from their values in conf/train.yaml."""
TARGETS = {
    "hydra.launcher": tuple(launcher.target for launcher in LAUNCHERS.values()),
    "hydra.sweeper": ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper",),
}
"""The only mappings of which Hydra may build objects -> the classes of these objects."""
COMMANDS = (
    *("hydra.launcher.setup", "hydra.launcher.python", "hydra.launcher.srun_args"),
    *("hydra.launcher.additional_parameters", "hydra.launcher.ray.init.runtime_env"),
)
"""Options of launchers and sweepers that contain commands; they have to be empty."""


def run_hydra(
    job: Callable[[Any], Any], options: Sequence[str], overrides: Sequence[str]
) -> list[JobReturn]:
    """Composes the config of a run, or those of a sweep, and calls `job` with each.

    Args:
        job: function of the composed config; Hydra has created the folder of the run.
        options, overrides: what `hydra_words` returned.

    Returns:
        The results of all jobs; none for `--cfg`, which prints the config, or if the sweeper
        returns none.

    Raises:
        UserError: the config is not allowed.
        HydraException: the config cannot be composed.
    """
    words = list(overrides)
    with initialized_hydra(options) as hydra, limited_resolvers():
        if "--cfg" in options:
            hydra.show_cfg("train", words, options[options.index("--cfg") + 1], None)
            return []
        if "--multirun" in options:
            batches = hydra.multirun("train", job, [*words, "hydra.mode=MULTIRUN"])
            return [result for batch in batches or () for result in batch]
        return [hydra.run("train", job, [*words, "hydra.mode=RUN"])]


def compose_config(options: Sequence[str], overrides: Sequence[str]) -> Container:
    """Composes the config of one run.

    Raises:
        UserError: the config is not allowed.
        HydraException: the config cannot be composed.
    """
    with initialized_hydra(options) as hydra, limited_resolvers():
        config = hydra.compose_config("train", list(overrides), RunMode.RUN)
        with flag_override(config, ["struct", "readonly"], False):
            del config["hydra"]
        return config


@contextlib.contextmanager
def initialized_hydra(options: Sequence[str]) -> Iterator[Hydra]:
    """Makes Hydra compose configs of famx and of `--config-dir`, with the checks of this module.

    Raises:
        UserError: there is no such folder.
    """
    # configs of famx come before those of the user with the same name
    if VERSION_BASE:
        version.setbase(VERSION_BASE["version_base"])
    search_path = create_config_search_path(str(CONF))
    for folder in user_folders(options):
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    hydra = Hydra("train", CheckedLoader(search_path))
    GlobalHydra.instance().initialize(hydra)
    try:
        yield hydra
    finally:
        GlobalHydra.instance().clear()


class CheckedRepository(ConfigRepository):
    """Hydra's files of configs, with the limits of `read_yaml`; each file is read once."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.results: dict[tuple[str, str], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "CheckedRepository":
        """Returns a copy with sources of its own, which shares the files that have been read.

        Hydra makes such a copy for every run of a sweep.
        """
        copied = copy.copy(self)
        copied.sources = list(self.sources)
        return copied

    def load_config(self, config_path: str) -> Any:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None:
            return super().load_config(config_path)
        key = (f"{source.scheme()}://{source.path}", config_path)
        if key not in self.results:
            # not by class, since Hydra imports its own plugins a second time
            if source.scheme() == "file":
                read_yaml(Path(source.path, source._normalize_file_name(config_path)))
            self.results[key] = super().load_config(config_path)
        # Hydra changes the config while it composes
        return copy.deepcopy(self.results[key])


class CheckedLoader(SharingLoader):
    """Hydra's loader, through which every config of a run and of a sweep comes, with checks."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = CheckedRepository(config_search_path)
        self.validated: dict[tuple[str, ...], Any] = {}

    def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> Any:
        """Composes a run of a sweep once; sweepers ask for it twice, to check and to start it."""
        key = tuple(sweep_overrides)
        if key in self.validated:
            return self.validated.pop(key)
        config = super().load_sweep_config(master_config, sweep_overrides)
        self.validated[key] = config
        return config

    def _load_configuration_impl(self, *arguments: Any, **options: Any) -> Any:
        """Composes a config, of a run or of a sweep, and checks it.

        All ways of composing a config end here, in Hydra 1.3 and in 1.4, with named arguments.
        """
        overrides = options["overrides"]
        # a package in the search path would be imported while the config is composed
        typed = {}
        for word in overrides:
            override = parse_override(word)
            if override is not None:
                typed[override.key_or_group] = override.value()
        _refuse_packages(typed.get("hydra.searchpath"))
        try:
            config = super()._load_configuration_impl(*arguments, **options)
        # of os.environ; Hydra's own errors are not plain
        except KeyError as error:
            raise UserError(
                f"hydra.job.env_copy={error}: famx does not let a config read the environment"
            ) from error
        with limited_resolvers():
            _refuse_options(config, typed)
            _refuse_objects(config)
            check_folder_name(_resolved(config, "name"))
        return config


def _refuse_packages(search_path: object) -> None:
    """Checks that Hydra searches configs in folders only.

    Raises:
        UserError: an item of `hydra.searchpath` is not `file://FOLDER`.
    """
    for item in search_path if isinstance(search_path, list) else []:
        if not str(item).startswith("file://"):
            raise UserError(
                f"hydra.searchpath={item} would import a package; give folders, as file://FOLDER"
            )


def _refuse_options(config: Container, typed: Mapping[str, object]) -> None:
    """Checks the options of `FIXED`, `TYPED` and `COMMANDS`.

    Args:
        typed: options of the command line; in a run of a sweep, with those that are swept.

    Raises:
        UserError: one of them has another value.
    """
    for key, value in FIXED.items():
        actual = _resolved(config, key)
        if actual != value:
            raise UserError(f"{key}={actual}: famx does not let a config set this option of Hydra")
    written = OmegaConf.to_container(config, resolve=False)
    for key in TYPED:
        actual = _option(written, key)
        if key not in typed and actual != _option(_defaults(), key):
            raise UserError(f"{key}={actual} can only be set on the command line, not in a file")
    for key in COMMANDS:
        command = _resolved(config, key)
        if command:
            raise UserError(f"{key}={command} would run a command, which famx does not let it do")


def _refuse_objects(config: Container) -> None:
    """Checks the objects that Hydra builds, and the options that a file sweeps.

    Raises:
        UserError: an object is not one of `TARGETS`, or an option of Hydra is swept.
    """
    for section in ("hydra.launcher", "hydra.sweeper"):
        for key, target in _targets(_resolved(config, section), section):
            if target not in TARGETS.get(key, ()):
                allowed = ", ".join(TARGETS.get(key, ())) or "none"
                raise UserError(
                    f"{key}._target_={target} would run code; famx lets Hydra build: {allowed}"
                )
    # options that a file sweeps become words of a command line
    for key in _resolved(config, "hydra.sweeper.params") or {}:
        option = str(key).strip().lstrip("+~")
        if option.startswith("hydra") or option in TYPED:
            raise UserError(f"hydra.sweeper.params.{key}: this option cannot be swept")


def _resolved(config: Container, key: str) -> Any:
    """Returns an option as plain values with interpolations resolved; None if there is none.

    Raises:
        UserError: an interpolation cannot be resolved.
    """
    try:
        node = OmegaConf.select(config, key)
        return OmegaConf.to_container(node, resolve=True) if isinstance(node, Container) else node
    except OmegaConfBaseException as error:
        # OmegaConf does not always say which option it is about
        raise UserError(f"{error.full_key or key}: {one_line(error)}") from error


@functools.cache
def _defaults() -> Any:
    """Returns conf/train.yaml as plain values, with its interpolations."""
    return OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"), resolve=False)


def _option(config: Any, key: str) -> Any:
    """Returns an option of a plain config, or what stands in the place of its parent."""
    node = config
    for step in key.split("."):
        if not isinstance(node, dict):
            break
        node = node.get(step)
    return node


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of each key with which Hydra builds an object."""
    items: list[tuple[object, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for key, value in items:
        if key == "_target_":
            yield path, value
        yield from _targets(value, f"{path}.{key}")
