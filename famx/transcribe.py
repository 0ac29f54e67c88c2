"""Transcribes recordings: python -m famx.transcribe RUN FILE... [--checkpoint last] [decode=...]"""

import sys
from pathlib import Path

from famx.config.command import Parser, import_user_parts, run_command
from famx.files import printable
from famx.notation import UserError
from famx.training.run_dir import RunDir

OVERRIDES = ("decode=", "decode.", "trainer.device=", "trainer.threads=")


def main() -> int:
    """Prints a line for each file, `path<TAB>text`, and the bad files at the end.

    Returns:
        The exit status, 2 if a file is bad.
    """
    parser = Parser(prog="python -m famx.transcribe", description="Transcribes audio files.")
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "words",
        metavar="FILE",
        nargs="+",
        help="audio of any length, rate and number of channels; also decode=NAME, "
        "decode.KEY=VALUE, trainer.device=NAME, famx_parts=[file.py]",
    )
    parser.add_argument(
        "--checkpoint", default="best", choices=("best", "last"), help="best on dev, or the newest"
    )
    parser.add_argument(
        "--trust-edits",
        action="store_true",
        help="use config.yaml and tokenizer.json although they have changed since the training",
    )
    arguments = parser.parse_intermixed_args()
    # a word is a file if a file of that name exists
    files = []
    overrides = []
    part_words = []
    for word in arguments.words:
        if word.startswith("famx_parts="):
            part_words.append(word)
        elif word.startswith(OVERRIDES) and not Path(word).exists():
            overrides.append(word)
        else:
            files.append(word)
    # the user's parts are registered before the model is built
    run_dir = RunDir(arguments.run)
    if not arguments.trust_edits:
        run_dir.require_unedited("--trust-edits")
    import_user_parts(part_words, arguments.run, run_dir.load_config()["famx_parts"])
    import famx

    recognizer = famx.load(arguments.run, arguments.checkpoint, overrides, arguments.trust_edits)
    recognizer.transcribe([])  # refuses a text model before the first file
    bad = []
    for file in files:
        try:
            [text] = recognizer.transcribe([file])
        except UserError as error:
            bad.append(file)
            print(f"famx: {printable(str(error))}", file=sys.stderr, flush=True)
        else:
            print(f"{printable(file)}\t{printable(text)}", flush=True)
    if len(files) > 1 and bad:
        names = printable(", ".join(bad))
        print(f"famx: {len(bad)} of {len(files)} files are left out: {names}", file=sys.stderr)
    return 2 if bad else 0


if __name__ == "__main__":
    run_command(main)
