"""The folder of a run, and every file in it."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from famx import files
from famx.config.documents import load_yaml
from famx.config.errors import refuse_renamed
from famx.config.schema import root_defaults
from famx.notation import UserError
from famx.registry import ROOMS
from famx.training.evaluate import Evaluation

SECTIONS = (*ROOMS, "model", "trainer", "loader")  # mappings that every stored config has


class RunDir:
    """The files of one run.

    Args:
        path: folder of the run, which may not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.tokenizer_file = self.path / "tokenizer.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.param_groups_file = self.path / "groups.tsv"
        self.spectrum_file = self.path / "spectrum.parquet"
        self.log_file = self.path / "famx.log"
        self.checkpoints = self.path / "checkpoints"

    def __str__(self) -> str:
        return str(self.path)

    def scores_file(self, split: str) -> Path:
        return self.path / f"scores.{split}.json"

    def hypotheses_file(self, split: str) -> Path:
        return self.path / f"hypotheses.{split}.tsv"

    # a new run

    def require_empty(self) -> None:
        """Checks that the folder can be used for a new run.

        Raises:
            UserError: it already holds a run.
        """
        if not (self.checkpoints.exists() or self.config_file.exists()):
            return
        if any(self.checkpoints.glob("*")):
            remedy = f"continue it with resume={self}"
        else:
            remedy = "it has saved no checkpoint, so remove it"
        raise UserError(f"{self} already holds a run: {remedy}, or choose another folder")

    @contextlib.contextmanager
    def lock(self, resume: bool) -> Iterator[None]:
        """Reserves the folder for this process.

        Raises:
            UserError: another process trains in it, or it already holds a run and `resume` is
                False.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        files.require_own_files(self.path, writing=True)
        # the lock is released with the process, however it ends
        try:
            lock = FileLock(self.path / ".lock", timeout=0).acquire()
        except Timeout as error:
            raise UserError(f"{self} is in use: another process trains in it") from error
        with lock:
            if not resume:
                self.require_empty()
                self.checkpoints.mkdir()
            yield

    def save_setup(self, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        """Writes the config and the tokenizer, from which the run can be built again."""
        files.write_atomic(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))
        files.write_atomic(self.tokenizer_file, tokenizer.to_str(pretty=True))

    # an existing run

    def require_checkpoints(self) -> Path:
        """Returns the folder of the checkpoints.

        Raises:
            UserError: the run has none, or its folder has links.
        """
        files.require_own_files(self.path)
        if not self.checkpoints.is_dir():
            raise UserError(f"{self} is not a run with checkpoints: there is no {self.checkpoints}")
        return self.checkpoints

    def load_config(self) -> dict[str, Any]:
        """Reads the run's config; options that are newer than the run have their defaults.

        Raises:
            UserError: it is missing or damaged, or the folder has links.
        """
        files.require_own_files(self.path)
        try:
            config = load_yaml(self.config_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self} is not a run: {self.config_file} cannot be read ({reason})"
            ) from error
        # a file of other YAML is reported like one without sections
        if not isinstance(config, dict):
            config = {}
        refuse_renamed(config, str(self.config_file))
        missing = [key for key in SECTIONS if not isinstance(config.get(key), dict)]
        if missing:
            raise UserError(
                f"{self} is not a run: {self.config_file} has no section {', '.join(missing)}"
            )
        # rooms, and files of the user's parts
        for room in ROOMS:
            if not isinstance(config[room].get("name"), str):
                raise UserError(
                    f"{self} is damaged: {self.config_file} names no part of the room {room}"
                )
        config = root_defaults() | config
        if not _are_user_parts(config["famx_parts"]):
            raise UserError(
                f"{self} is damaged: famx_parts in {self.config_file} must be a list of mappings "
                "{file, sha256}"
            )
        return config

    def load_tokenizer(self) -> Tokenizer:
        """Reads the run's tokenizer.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            return Tokenizer.from_str(self.tokenizer_file.read_text())
        except Exception as error:  # tokenizers raises nothing more specific
            raise UserError(f"{self.tokenizer_file} is missing or damaged: {error}") from error

    # the scores of a run

    def write_evaluation(self, evaluation: Evaluation, split: str, normaliser: str) -> None:
        """Writes `scores.<split>.json`, and `hypotheses.<split>.tsv` (id, ref, hyp) if any."""
        if evaluation.ids:
            rows = zip(evaluation.ids, evaluation.references, evaluation.hypotheses, strict=True)
            lines = ["id\tref\thyp", *("\t".join(row) for row in rows)]
            files.write_atomic(self.hypotheses_file(split), "\n".join(lines) + "\n")
        scores = json.dumps(evaluation.summary(normaliser), indent=1)
        files.write_atomic(self.scores_file(split), scores + "\n")

    def remove_evaluations(self) -> None:
        """Removes the scores of a run that is trained further."""
        for file in [*self.path.glob("scores.*.json"), *self.path.glob("hypotheses.*.tsv")]:
            file.unlink()


def _are_user_parts(value: object) -> bool:
    """Returns whether a value is what a config stores of the files of the user's parts."""
    if not isinstance(value, list):
        return False
    for part in value:
        if not isinstance(part, dict) or part.keys() != {"file", "sha256"}:
            return False
        if not all(isinstance(text, str) for text in part.values()):
            return False
    return True


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """Lists folders of runs, each once, in their order; the folder of a sweep is all its runs."""
    by_target: dict[Path, Path] = {}
    for path in map(Path, paths):
        runs = sorted(file.parent for file in path.glob("*/config.yaml"))
        if (path / "config.yaml").exists() or not runs:
            runs = [path]
        for run in runs:
            by_target.setdefault(run.resolve(), run)
    return list(by_target.values())
