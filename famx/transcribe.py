"""Transcribes recordings: python -m famx.transcribe RUN FILE... [--format srt] [decode=...]"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from famx.config.command import Parser, run_command, split_parts
from famx.decode._windows import check_window
from famx.files import printable
from famx.notation import UserError
from famx.training.run_dir import open_run

if TYPE_CHECKING:
    from famx.decode._transcript import Transcript

OVERRIDES = ("decode=", "decode.", "trainer.device=", "trainer.threads=")


def main() -> int:
    """Prints the transcript of each file, and the bad files at the end.

    Returns:
        The exit status, 2 if a file is bad.
    """
    arguments = _parser().parse_intermixed_args()
    parts, words = split_parts(arguments.words)
    # a word is a file if a file of that name exists
    overrides = [word for word in words if word.startswith(OVERRIDES) and not Path(word).exists()]
    files = [word for word in words if word not in overrides]
    if arguments.format == "srt":
        _check_subtitles(files, arguments.timestamps)
        arguments.timestamps = "word"
    check_window("--window", arguments.window)
    # the user's parts are registered before the model is built
    open_run(arguments.run, parts, arguments.trust_edits)
    import famx
    from famx.decode._transcript import Transcript

    recognizer = famx.load(arguments.run, arguments.checkpoint, overrides, arguments.trust_edits)
    # refuses a text model, and times of a model without frames, before the first file
    recognizer.transcribe([], arguments.timestamps, arguments.window)
    bad = []
    for file in files:
        try:
            [result] = recognizer.transcribe([file], arguments.timestamps, arguments.window)
        except UserError as error:
            bad.append(file)
            print(f"famx: {printable(str(error))}", file=sys.stderr, flush=True)
        else:
            transcript = result if isinstance(result, Transcript) else Transcript(result)
            print(_formatted(file, transcript, arguments), flush=True)
    if len(files) > 1 and bad:
        names = printable(", ".join(bad))
        print(f"famx: {len(bad)} of {len(files)} files are left out: {names}", file=sys.stderr)
    return 2 if bad else 0


def _parser() -> Parser:
    parser = Parser(prog="python -m famx.transcribe", description="Transcribes audio files.")
    parser.add_run()
    parser.add_argument(
        "words",
        metavar="FILE",
        nargs="+",
        help="audio of any length, rate and number of channels; also decode=NAME, "
        "decode.KEY=VALUE, trainer.device=NAME, famx_parts=[file.py]",
    )
    parser.add_argument(
        "--format",
        default="text",
        choices=("text", "json", "srt"),
        help="text: FILE, tab, text; json: an object for each file; srt: subtitles of one file",
    )
    parser.add_argument(
        "--timestamps",
        choices=("word", "char"),
        help="start and end of each word or character, in seconds; as text a line for each: FILE, "
        "start, end and word, with tabs between them",
    )
    parser.add_argument(
        "--window",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="longer recordings pass the model in overlapping windows of this length",
    )
    return parser


def _check_subtitles(files: list[str], timestamps: str | None) -> None:
    if len(files) != 1:
        raise UserError(f"--format srt takes one file, because {len(files)} would share one output")
    if timestamps == "char":
        raise UserError("--format srt has the times of words; remove --timestamps char")


def _formatted(file: str, transcript: "Transcript", arguments: argparse.Namespace) -> str:
    """Returns a transcript in the format that the command names."""
    from famx.decode._transcript import subtitles

    if arguments.format == "srt":
        return subtitles(transcript.units)
    if arguments.format == "json":
        content: dict[str, object] = {"file": file, "text": transcript.text}
        if arguments.timestamps:
            units = []
            for unit in transcript.units:
                start = round(unit.start, 3)
                units.append({"text": unit.text, "start": start, "end": round(unit.end, 3)})
            content[f"{arguments.timestamps}s"] = units
        # surrogates of file names that are no UTF-8 are escaped
        return json.dumps(content)
    name = printable(file)
    if not arguments.timestamps:
        return f"{name}\t{printable(transcript.text)}"
    lines = []
    for unit in transcript.units:
        lines.append(f"{name}\t{unit.start:.3f}\t{unit.end:.3f}\t{printable(unit.text)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, memory="use a shorter --window, or trainer.device=cpu")
