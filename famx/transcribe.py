"""Writes down what is said: python -m famx.transcribe RUN FILE... [--checkpoint best|last] [famx_parts=[file.py]]"""

from famx.config.command import Parser, import_user_parts, run_command
from famx.training.run_dir import load_config


def main() -> int:
    """Prints a line a file, `path<TAB>words`; returns the exit status."""
    parser = Parser(prog="python -m famx.transcribe", description="Transcribes audio files.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="audio of any length, rate, number of channels"
    )
    parser.add_argument(
        "--checkpoint", default="best", choices=("best", "last"), help="best on dev, or the newest"
    )
    arguments = parser.parse_args()
    import_user_parts(
        [word for word in arguments.files if word.startswith("famx_parts=")],
        arguments.run,
        load_config(arguments.run)["famx_parts"],
    )
    import famx

    recognizer = famx.load(arguments.run, arguments.checkpoint)
    for path in arguments.files:
        if not path.startswith("famx_parts="):
            print(f"{path}\t{recognizer.transcribe([path])[0]}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
