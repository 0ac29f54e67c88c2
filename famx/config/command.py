"""The command line of every command: parser, exit status, user parts."""

import argparse
import contextlib
import hashlib
import logging
import os
import shlex
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from famx import files
from famx.notation import UserError
from famx.registry import ROOMS, load_file, names


def find_override(key: str, words: list[str] | None = None) -> str | None:
    """The value of `key=...` among the command line's words, read before Hydra composes; None when not given."""
    found = [
        word.partition("=")[2]
        for word in (sys.argv[1:] if words is None else words)
        if word.lstrip("+").startswith(f"{key}=")
    ]
    return found[-1] if found else None


def format_command(verb: str, *words: str) -> str:
    """A command of famx to be pasted, with the own parts that this one was given."""
    own = [f"famx_parts={named}" for named in [find_override("famx_parts")] if named]
    return shlex.join(["python", "-m", f"famx.{verb}", *words, *own])


class Parser(argparse.ArgumentParser):
    """Tells a mistake on the command line in one sentence, as everything else does."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{self.prog}: {message}")


def run_command(main: Callable[[], int]) -> typing.NoReturn:
    """Runs a command: exit status 0 done, 2 the user's mistake in one sentence, 130 on Ctrl-C, 1 a fault of famx.

    `FAMX_DEBUG=1` shows the traceback of a mistake too.
    """
    try:
        with _warned(), files.report_os_errors(), files.quiet_writer_threads():
            status = main()
            sys.stdout.flush()
    except UserError as error:
        if os.environ.get("FAMX_DEBUG") == "1":
            raise
        print(f"famx: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # whoever read the output (`| head`) has enough; python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        if own := find_override("famx_parts"):
            error.add_note(
                f"famx: python -m famx.check FILE says which law a part of {own} breaks, and where"
            )
        raise
    sys.exit(status)


def parse_yaml(key: str, text: str) -> Any:
    """The value of a word that Hydra does not read.

    Raises:
        UserError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}={text} cannot be read: {str(error).splitlines()[0]}") from error


def require_parts(words: list[str]) -> None:
    """Refuses words that leave a room without a part, which Hydra would take.

    Raises:
        UserError: a word deletes a room's choice, or makes it null.
    """
    for word in words:
        key, _, value = word.partition("=")
        room = key.lstrip("~+")
        if room in (*ROOMS, "model") and (key.startswith("~") or value in ("", "null")):
            parts = f", such as {room}={names(room)[0]}" if room in ROOMS else ""
            raise UserError(f"{word} leaves {room} without a choice: it needs one{parts}")


@contextlib.contextmanager
def _warned() -> Iterator[None]:
    """Shows what is warned of, once, however often it comes up."""
    handler, told = logging.StreamHandler(), set()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("famx: %(message)s"))
    handler.addFilter(
        lambda record: not (record.getMessage() in told or told.add(record.getMessage()))
    )
    logging.getLogger("famx").addHandler(handler)
    logging.getLogger("famx").setLevel(logging.WARNING)  # Hydra lets errors alone through
    try:
        yield
    finally:
        logging.getLogger("famx").removeHandler(handler)


def import_user_parts(
    words: list[str], run: str | Path | None = None, required: Iterable[Mapping[str, str]] = ()
) -> list[dict[str, str]]:
    """Registers the files that `famx_parts=[...]` names among the words, before anything is composed.

    Args:
        run: the run that is loaded, for the error message.
        required: `file` and `sha256` of the parts that the run was trained with, which must be given again unchanged.

    Returns:
        Name and digest of each file, which is all that a run stores of its parts.

    Raises:
        UserError: a file is missing, registers nothing, or is not what the run was trained with.
    """
    value = parse_yaml("famx_parts", find_override("famx_parts", words) or "[]")
    files = [Path(str(item)) for item in (value if isinstance(value, list) else [value])]
    given = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()
    }
    used = {part["file"]: part["sha256"] for part in required}
    for name in used:
        if given.get(name) != used[name]:
            state = "has changed since" if name in given else "is not given"
            whole = f"famx_parts=[{','.join(used)}]"
            raise UserError(
                f"{run} was trained with {name}, which {state}: pass {whole} as then, each with its path"
            )
    for file in files:
        load_file(file)
    return [{"file": name, "sha256": digest} for name, digest in given.items()]
