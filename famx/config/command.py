"""The command line of all commands: parser, exit status, and the user's parts."""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

import famx
from famx import files
from famx.config.documents import load_yaml
from famx.notation import UserError
from famx.registry import load_file

# what needs less memory, of a command whose work has one size
MEMORY = "it needs a machine with more memory"


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one sentence."""

    def add_run(self) -> None:
        """Adds the options of a command that uses the model of a run."""
        self.add_argument("run", metavar="RUN", help="folder of a run")
        self.add_argument(
            "--checkpoint",
            default="best",
            choices=("best", "last"),
            help="best on dev, or the newest",
        )
        self.add_argument(
            "--trust-edits",
            action="store_true",
            help="use config.yaml and tokenizer.json although they have changed since the training",
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def run_command(main: Callable[[], int], memory: str = MEMORY) -> NoReturn:
    """Runs a command and exits.

    Args:
        main: returns the exit status.
        memory: what the user can do where the memory is exhausted.

    The exit status is 0 after success, 2 after a mistake of the user (reported in one sentence;
    `FAMX_DEBUG=1` adds the traceback), 130 after Ctrl-C, and 1 after an error of famx.
    """
    _escape_unprintable()
    if sys.argv[1:] == ["--version"]:
        print(f"famx {famx.__version__}")
        sys.exit(0)
    try:
        with (
            show_warnings(),
            files.report_os_errors(),
            files.report_memory_errors(memory),
            files.quiet_writer_threads(),
        ):
            status = main()
            # raises here for a closed pipe or a full disk
            sys.stdout.flush()
    except UserError as error:
        if os.environ.get("FAMX_DEBUG") == "1":
            raise
        print(f"famx: {files.printable(str(error))}", file=sys.stderr)
        status = 2
    except SystemExit as error:
        # famx exits with 0 after --help alone, so a part of the user's has ended the process
        if error.code not in (0, None) or {"-h", "--help"}.intersection(sys.argv):
            raise
        print("famx: a part has ended the process by sys.exit", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # the reader of the output (`| head`) is gone; Python would report it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        user_parts = find_override("famx_parts", sys.argv[1:])
        if user_parts:
            error.add_note(
                f"famx: python -m famx.check FILE shows which contract a part of {user_parts} "
                "breaks, and where"
            )
        raise
    sys.exit(status)


def _escape_unprintable() -> None:
    """Prints what the terminal's encoding, or any, does not have as escapes, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        # a stream that captures the output may be of another class
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def show_warnings() -> Iterator[None]:
    """Prints warnings of famx on stderr, each once."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(files.PrintableFormatter("famx: %(message)s"))
    handler.addFilter(_OncePerMessage())
    _printed.clear()
    logger = logging.getLogger("famx")
    logger.addHandler(handler)
    levels = {each: each.level for each in (logger, logging.root)}
    # Hydra sets the root logger to errors only
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in levels.items():
            each.setLevel(level)
        logger.removeHandler(handler)


def printed_warnings() -> Iterator[str]:
    """Yields the warnings that this command has printed so far."""
    yield from _printed


_printed: dict[str, None] = {}  # in the order of the first time


class _OncePerMessage(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in _printed
        _printed[message] = None
        return is_new


def find_override(key: str, words: Sequence[str]) -> str | None:
    """Returns the value of the last `key=value` among the words, None if there is none.

    The value is the text as typed, for options that are needed before Hydra composes the config.
    """
    value = None
    for word in words:
        name, equals, text = word.lstrip("+").partition("=")
        if name == key and equals:
            value = text
    return value


def format_command(command: str, *words: str) -> str:
    """Returns a command of famx to copy, with the `famx_parts` of the current command line."""
    # the other command needs the same parts, from whichever folder
    files = [os.path.abspath(file) for file in user_part_files(sys.argv[1:])]
    if files:
        is_plain = all(re.fullmatch(r"[\w ./-]+", file) for file in files)
        # a path with a comma or a bracket needs quotes of YAML
        items = files if is_plain else [json.dumps(file, ensure_ascii=False) for file in files]
        words = (*words, f"famx_parts=[{','.join(items)}]")
    return shlex.join([python_command(), "-m", f"famx.{command}", *words])


def format_tensorboard(folder: str | Path) -> str:
    """Returns the command that starts TensorBoard, to copy."""
    program = ["tensorboard"] if _is_on_path("tensorboard") else [python_command(), "-m"]
    if len(program) > 1:
        program.append("tensorboard.main")
    return shlex.join([*program, "--logdir", str(folder)])


def python_command() -> str:
    """Returns `python` where the shell finds this Python by it, otherwise the path of this one."""
    return "python" if _is_on_path("python") else sys.executable


def _is_on_path(program: str) -> bool:
    """Returns whether the shell finds a program in the folder of this Python."""
    path = shutil.which(program)
    if path is None:
        return False
    # of the folder, since the Pythons of all virtual environments are links to one file
    return os.path.realpath(os.path.dirname(path)) == os.path.realpath(
        os.path.dirname(sys.executable)
    )


def parse_yaml(key: str, text: str) -> Any:
    """Returns the value of an option that Hydra does not parse.

    Raises:
        UserError: the text is not YAML.
    """
    try:
        return load_yaml(text)
    # integers of thousands of digits, and thousands of brackets, too
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}={text} cannot be read: {reason}") from error


def import_user_parts(
    words: Sequence[str],
    run: str | Path | None = None,
    required: Iterable[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """Registers the parts in the files of `famx_parts=[...]`.

    Args:
        words: words of the command line.
        run: folder of the run that is loaded, for error messages.
        required: `file` and `sha256` of the files that the run was trained with.

    Returns:
        Name and digest of each file: `file` and `sha256`.

    Raises:
        UserError: a file is missing, registers no part, or differs from the run's.
    """
    paths = user_part_files(words)
    digests = {path.name: _digest(path) for path in paths if path.is_file()}
    # files are executed only if they are those of the run
    _require_same_parts(digests, {part["file"]: part["sha256"] for part in required}, run)
    for path in paths:
        load_file(path)
    return [{"file": name, "sha256": digest} for name, digest in digests.items()]


def split_parts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the words `famx_parts=[...]` of a command line, and the others."""
    parts = [word for word in words if word.startswith("famx_parts=")]
    return parts, [word for word in words if word not in parts]


def user_part_files(words: Sequence[str]) -> list[Path]:
    """Returns the files of `famx_parts=[...]` on a command line."""
    value = parse_yaml("famx_parts", find_override("famx_parts", words) or "[]")
    # a single file needs no brackets
    items = value if isinstance(value, list) else [value]
    return [Path(str(item)) for item in items]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _require_same_parts(
    digests: Mapping[str, str], required: Mapping[str, str], run: str | Path | None
) -> None:
    """Raises a UserError if a file of parts that the run was trained with is missing or changed.

    A run's folder must not decide which code is executed, so the user names the files again.
    """
    for name, digest in required.items():
        if digests.get(name) == digest:
            continue
        state = "has changed since" if name in digests else "is missing"
        raise UserError(
            f"{run} was trained with {name}, which {state}: "
            f"pass famx_parts=[{','.join(required)}] with the path of each file"
        )
