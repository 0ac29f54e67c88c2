"""Calls a command by its name: `famx train seed=1` is `python -m famx.train seed=1`."""

import importlib.util
import runpy
import sys
from pathlib import Path

from famx.config.command import run_command
from famx.notation import UserError, suggest

COMMANDS = (
    "train",
    "evaluate",
    "transcribe",
    "translate",
    "generate",
    "compare",
    "panel",
    "spectra",
    "parts",
    "check",
    "replay",
    "export",
    "completion",
)


def run() -> None:
    """Runs the command that the first word names, as the entry point `famx` of the package."""
    command, *rest = [*sys.argv[1:], ""]
    if command not in COMMANDS:
        run_command(main)
    # its module ends the process with the status of the command
    sys.argv = [f"famx {command}", *rest[:-1]]
    runpy.run_module(f"famx.{command}", run_name="__main__", alter_sys=True)


def main() -> int:
    """Lists the commands.

    Raises:
        UserError: the first word is no command.
    """
    words = sys.argv[1:]
    if words and words[0] not in ("-h", "--help"):
        raise UserError(f"famx {words[0]}: no such command{suggest(words[0], COMMANDS)}")
    print("usage: famx COMMAND ..., the same as python -m famx.COMMAND ...\n")
    for command in COMMANDS:
        print(f"  {command:12}{_description(command)}")
    print("\nfamx COMMAND --help describes a command, famx --version prints the version")
    return 0


def _description(command: str) -> str:
    """Returns the first line of a command's file, without importing it."""
    spec = importlib.util.find_spec(f"famx.{command}")
    assert spec is not None
    assert spec.origin is not None
    first_line = Path(spec.origin).read_text(encoding="utf-8").partition("\n")[0]
    return first_line.strip('"').partition(": python -m")[0]


if __name__ == "__main__":
    run()
