"""Transcribes recordings: python -m famx.transcribe RUN FILE... [--checkpoint last] [decode=...]"""

from pathlib import Path

from famx.config.command import Parser, import_user_parts, run_command
from famx.files import printable
from famx.training.run_dir import RunDir

OVERRIDES = ("decode=", "decode.", "trainer.device=", "trainer.threads=")


def main() -> int:
    """Prints a line for each file, `path<TAB>text`; returns the exit status."""
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
    import_user_parts(part_words, arguments.run, RunDir(arguments.run).load_config()["famx_parts"])
    import famx

    recognizer = famx.load(arguments.run, arguments.checkpoint, overrides)
    for file in files:
        text = printable(recognizer.transcribe([file])[0])
        print(f"{file}\t{text}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
