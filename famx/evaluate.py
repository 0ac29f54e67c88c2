"""Scores a run: python -m famx.evaluate RUN [--split test] [--checkpoint best|last] [famx_parts=[file.py]]"""

from rich.console import Console

from famx.config.command import Parser, import_user_parts, run_command
from famx.notation import UserError
from famx.training.run_dir import load_config


def main() -> int:
    """Decodes a split, prints its error rates, writes hypotheses and scores; returns the exit status."""
    parser = Parser(
        prog="python -m famx.evaluate", description="Decodes and scores a split of a run."
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--split", default="test", help="test, dev, or another split of the run's data"
    )
    parser.add_argument(
        "--checkpoint", default="best", choices=("best", "last"), help="best on dev, or the newest"
    )
    parser.add_argument(
        "famx_parts",
        nargs="*",
        default=[],
        help="famx_parts=[file.py] where the run was trained with own parts",
    )
    arguments = parser.parse_args()
    for word in arguments.famx_parts:
        if not word.startswith("famx_parts="):
            raise UserError(f"{word}: nothing but famx_parts=[...] may follow the run")
    import_user_parts(arguments.famx_parts, arguments.run, load_config(arguments.run)["famx_parts"])
    from famx.inference import Recognizer

    recognizer = Recognizer(arguments.run, arguments.checkpoint)
    found, title = recognizer.evaluate(arguments.split), recognizer.title(arguments.split)
    console = Console(highlight=False)
    console.print(found.table(arguments.split))
    spoken = f"{len(found.ids)} utterances; hypotheses.{title}.tsv and " if found.ids else ""
    console.print(f"{spoken}scores.{title}.json in {arguments.run}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(main)
