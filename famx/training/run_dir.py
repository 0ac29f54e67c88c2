"""The folder of a run, and every file in it."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from famx import files
from famx.config.command import import_user_parts
from famx.config.documents import load_yaml
from famx.config.errors import refuse_renamed
from famx.config.schema import root_defaults
from famx.notation import UserError
from famx.registry import ROOMS
from famx.training import checkpoint
from famx.training.evaluate import Evaluation
from famx.training.manifest import (
    RunFiles,
    accept_run_files,
    are_user_parts,
    entry_of,
    read_record,
    run_files,
)
from famx.training.tree import MALFORMED

log = logging.getLogger(__name__)

SECTIONS = (*ROOMS, "model", "trainer", "loader")  # mappings that every stored config has
LOCK = ".lock"  # reserves a folder, and is locked while a process trains in it


class RunDir:
    """The files of one run.

    Args:
        path: folder of the run, which may not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.tokenizer_file = self.path / "tokenizer.json"
        self.data_file = self.path / "data.json"
        self.recordings_file = self.path / "recordings.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.param_groups_file = self.path / "groups.tsv"
        self.spectrum_file = self.path / "spectrum.parquet"
        self.log_file = self.path / "famx.log"
        self.tracker_file = self.path / "tracker.txt"
        self.identity_file = self.path / "identity.json"
        self.result_file = self.path / "result.json"
        self.provenance_file = self.path / "provenance.jsonl"
        self.checkpoints = self.path / "checkpoints"

    def __str__(self) -> str:
        return str(self.path)

    def scores_file(self, split: str) -> Path:
        return self.path / f"scores.{split}.json"

    def differences_file(self, split: str) -> Path:
        return self.path / f"differences.{split}.txt"

    def hypotheses_file(self, split: str) -> Path:
        return self.path / f"hypotheses.{split}.tsv"

    # a new run

    def require_empty(self) -> None:
        """Checks that the folder can be used for a new run.

        Raises:
            UserError: it already holds a run, or its name is not UTF-8.
        """
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            # TensorBoard could not write into it
            raise UserError(
                f"the folder {self} is not UTF-8 in this locale: set LC_ALL=C.UTF-8, or choose "
                "another folder with hydra.run.dir=FOLDER"
            ) from error
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
        files.require_regular_files(self.path, writing=True)
        # the lock is released with the process, however it ends
        try:
            lock = FileLock(self.path / LOCK, timeout=0).acquire()
        except Timeout as error:
            raise UserError(f"{self} is in use: another process trains in it") from error
        with lock:
            if not resume:
                self.require_empty()
                self.checkpoints.mkdir()
            yield

    def save_setup(self, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        """Writes the config and the tokenizer, from which the run can be built again."""
        self.write_files(
            {
                self.config_file: yaml.safe_dump(dict(config), sort_keys=False),
                self.tokenizer_file: tokenizer.to_str(pretty=True),
            }
        )

    def write_files(self, texts: Mapping[Path, str]) -> None:
        """Writes files of the run, which its checkpoints accept from then on."""
        # they are accepted before they are written, so a crash leaves no difference
        accepted = {file.name: [entry_of(text.encode())] for file, text in texts.items()}
        accept_run_files(checkpoint.all_folders(self.checkpoints), accepted)
        for file, text in texts.items():
            files.write_atomic(file, text)

    def add_provenance(self, facts: Mapping[str, object]) -> None:
        """Appends a line to `provenance.jsonl`, which has one for each start of the run."""
        file = self.provenance_file
        with files.report_os_errors(file), open(file, "a", opener=files.open_regular) as stream:
            stream.write(json.dumps(dict(facts)) + "\n")

    # an existing run

    def read_record(self, file: Path) -> dict[str, Any]:
        """Reads a mapping that `write_files` wrote; an empty one if the run has none.

        A warning names a file that is missing or damaged, which is not used.
        """
        return read_record(file, checkpoint.all_folders(self.checkpoints))

    def require_checkpoints(self) -> Path:
        """Returns the folder of the checkpoints.

        Raises:
            UserError: the run has none, or its folder has links.
        """
        files.require_regular_files(self.path)
        if not self.checkpoints.is_dir():
            raise UserError(f"{self} is not a run with checkpoints: there is no {self.checkpoints}")
        return self.checkpoints

    def digests(self) -> RunFiles:
        """Returns size and digest of the files that belong to a checkpoint, for its manifest."""
        records = (self.data_file, self.recordings_file, self.identity_file)
        files_now = (*self.setup_files, *records, self.param_groups_file, self.metrics_file)
        return {file.name: [entry_of(file.read_bytes())] for file in files_now if file.exists()}

    @property
    def setup_files(self) -> tuple[Path, ...]:
        """The files from which the run is built again."""
        return (self.config_file, self.tokenizer_file)

    def require_unedited(self, remedy: str) -> None:
        """Checks that the config and the tokenizer are those of the checkpoints.

        Args:
            remedy: option that uses the files as they are, for the error message.

        Raises:
            UserError: a file has changed since the checkpoints were saved, or cannot be read.
        """
        self.load_config()
        accepted = run_files(checkpoint.all_folders(self.checkpoints))
        for file in self.setup_files:
            # a missing file is reported where it is read
            if file.name not in accepted or not file.is_file():
                continue
            if entry_of(file.read_bytes()) not in accepted[file.name]:
                raise UserError(
                    f"{file} has changed since the run's checkpoints were saved: restore it, or "
                    f"add {remedy} to use it as it is"
                )

    def warn_of_edited_logs(self, step: int) -> None:
        """Warns of logs that differ from those that were saved with the checkpoint of a step.

        A copy of such a log remains, since the run continues it.
        """
        accepted = run_files([self.checkpoints / f"step-{step}"])
        for file in (self.metrics_file, self.param_groups_file):
            if file.name not in accepted:
                continue
            if not file.exists():
                log.warning("%s is missing, which was saved with step %d", file, step)
                continue
            # later steps have been appended, which the run repeats
            content = file.read_bytes()
            if any(entry_of(content[: entry["size"]]) == entry for entry in accepted[file.name]):
                continue
            copy = file.with_name(f"{file.stem}.damaged{file.suffix}")
            copy.write_bytes(content)
            log.warning(
                "%s differs from the file that was saved with step %d: what can be read of it is "
                "continued, a copy is %s",
                file,
                step,
                copy.name,
            )

    def load_config(self) -> dict[str, Any]:
        """Reads the run's config; options that are newer than the run have their defaults.

        Raises:
            UserError: it is missing or damaged, or the folder has links.
        """
        if not self.path.is_dir():
            state = "it is a file" if self.path.is_file() else "there is no such folder"
            raise UserError(f"{self} is not a run: {state}")
        files.require_regular_files(self.path)
        try:
            config = load_yaml(self.config_file.read_text(encoding="utf-8"))
        # PyYAML raises ValueError for numbers and dates, and other errors for nodes of no sense
        except (OSError, RecursionError, yaml.YAMLError, *MALFORMED) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            state = f"{self.config_file} cannot be read ({reason})"
            if isinstance(error, FileNotFoundError):
                state = f"there is no {self.config_file}"
            raise UserError(f"{self} is not a run: {state}") from error
        # a file of other YAML is reported like one without sections
        config = config if isinstance(config, dict) else {}
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
        if not are_user_parts(config["famx_parts"]):
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
            return Tokenizer.from_str(self.tokenizer_file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises nothing more specific
            raise UserError(f"{self.tokenizer_file} is missing or damaged: {error}") from error

    # the scores of a run

    def write_evaluation(
        self, evaluation: Evaluation, split: str, conditions: Mapping[str, object]
    ) -> None:
        """Writes `scores.<split>.json`, and what was recognised: `hypotheses`, `differences`."""
        # nothing remains of an earlier evaluation that had errors
        self.differences_file(split).unlink(missing_ok=True)
        for file, text in (
            (self.hypotheses_file(split), evaluation.hypotheses_text),
            (self.differences_file(split), evaluation.differences_text),
            (self.scores_file(split), evaluation.scores_text(conditions)),
        ):
            if text:
                files.write_atomic(file, text)

    def remove_evaluations(self) -> None:
        """Removes the scores and the result of a run that is trained further."""
        self.result_file.unlink(missing_ok=True)
        for pattern in ("scores.*.json", "hypotheses.*.tsv", "differences.*.txt"):
            for file in self.path.glob(pattern):
                file.unlink()


def open_run(
    path: str | Path,
    parts: Sequence[str],
    trust_edits: bool = False,
    remedy: str = "--trust-edits",
) -> RunDir:
    """Opens a run for a command that builds its model, and registers the user's parts first.

    Args:
        path: folder of the run.
        parts: words `famx_parts=[...]` of the command line.
        trust_edits: whether its config and tokenizer may have changed.
        remedy: what an error about such changes recommends.

    Raises:
        UserError: there is no such run, it has been edited, or needs other parts.
    """
    run_dir = RunDir(path)
    if not trust_edits:
        run_dir.require_unedited(remedy)
    import_user_parts(parts, path, run_dir.load_config()["famx_parts"])
    return run_dir


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
