"""Exports a trained run: python -m famx.export RUN --to FOLDER [--onnx]"""

import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from famx.config.command import Parser, run_command, split_parts, user_part_files
from famx.experiment.program import (
    ONNX,
    PROGRAM,
    export_program,
    require_onnx,
    save_onnx,
    save_program,
)
from famx.experiment.publication import CARD, publish
from famx.notation import UserError
from famx.training.run_dir import RunDir, open_run

if TYPE_CHECKING:
    from famx.experiment.build import Experiment


def main() -> int:
    """Writes one folder with weights, config, tokenizer, scores, a card and a program.

    Returns:
        The exit status.
    """
    parser = Parser(prog="python -m famx.export", description="Exports a run as one folder.")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--to", metavar="FOLDER", required=True, help="folder to write, a new one")
    parser.add_argument(
        "--checkpoint", default="best", choices=("best", "last"), help="best on dev, or the newest"
    )
    parser.add_argument(
        "--no-program", action="store_true", help=f"leave out {PROGRAM}, which runs without famx"
    )
    parser.add_argument("--onnx", action="store_true", help=f"also write {ONNX}")
    parser.add_argument("words", metavar="famx_parts=[file.py]", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    parts, unknown = split_parts(arguments.words)
    if unknown:
        raise UserError(f"{unknown[0]} cannot be set: a run is exported as it was trained")
    if arguments.onnx and arguments.no_program:
        raise UserError("--onnx is written from the program: leave out --no-program")
    if arguments.onnx:
        require_onnx()
    target = Path(arguments.to)
    if target.exists():
        raise UserError(f"--to {target} exists: choose a new folder")

    # the user's parts are registered before the model is built
    remedy = "no option; an export has what was trained"
    run_dir = open_run(arguments.run, parts, remedy=remedy)
    # complete or not at all
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        failure = _write(run_dir, temporary, arguments)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    names = ", ".join(sorted(path.name for path in target.iterdir() if path.name[0] != "."))
    print(f"{target}: {names}; start with {CARD}")
    if failure:
        print(f"famx: {failure}", file=sys.stderr)
    return 2 if failure else 0


def _write(run_dir: RunDir, folder: Path, arguments: Namespace) -> str | None:
    """Writes everything into a folder; returns why a program cannot be written, None if it is."""
    from famx.inference import Recognizer

    recognizer = Recognizer(run_dir.path, arguments.checkpoint, ["trainer.device=cpu"])
    experiment = recognizer.experiment
    failure = None if arguments.no_program else _write_programs(experiment, folder, arguments.onnx)
    # the card lists the programs
    parts = user_part_files(arguments.words)
    publish(run_dir, experiment, arguments.checkpoint, parts, folder)
    return failure


def _write_programs(experiment: "Experiment", folder: Path, with_onnx: bool) -> str | None:
    """Writes the model as programs; returns why one cannot be written, None if all are."""
    remedy = "--no-program leaves it out"
    try:
        vocab_size = experiment.tokenizer.get_vocab_size()
        program = export_program(experiment.model, experiment.modality, vocab_size)
        save_program(program, folder / PROGRAM)
        if with_onnx:
            remedy = f"omit --onnx, which writes {ONNX}"
            save_onnx(program, folder / ONNX)
    except UserError as error:
        return f"{error}; everything else is exported: {remedy}"
    return None


if __name__ == "__main__":
    run_command(main)
