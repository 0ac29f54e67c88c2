"""Scores a run: python -m famx.evaluate RUN [--split test] [--checkpoint best|last] [decode=...]"""

from rich.console import Console

from famx.config.command import Parser, run_command, split_parts
from famx.training.run_dir import open_run


def main() -> int:
    """Decodes a split, prints its error rates, writes hypotheses and scores.

    Returns:
        The exit status.
    """
    # options
    parser = Parser(
        prog="python -m famx.evaluate", description="Decodes and scores a split of a run."
    )
    parser.add_run()
    parser.add_argument(
        "--split", default="test", help="test, dev, or another split of the run's data"
    )
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="another decoding (decode=NAME decode.KEY=VALUE), other data (data.root=FOLDER "
        "data.test=FILE, or data=NAME), trainer.device=NAME, "
        "and famx_parts=[file.py] where the run was trained with parts of your own",
    )
    arguments = parser.parse_intermixed_args()

    # the user's parts are registered before the model is built
    parts, overrides = split_parts(arguments.overrides)
    run_dir = open_run(arguments.run, parts, arguments.trust_edits)
    from famx.inference import Recognizer

    # scores, then the names of the files that hold them
    recognizer = Recognizer(arguments.run, arguments.checkpoint, overrides, arguments.trust_edits)
    evaluation = recognizer.evaluate(arguments.split)
    console = Console(highlight=False, markup=False)
    console.print(evaluation.table(arguments.split))
    if recognizer.experiment.config["check"] == "off":
        console.print("the run was trained with check=off: its parts may see what they must not")
    if evaluation.analysis is not None:
        for table in evaluation.analysis.tables():
            console.print(table)
    title = f"{arguments.split}{recognizer.suffix}"
    written = [run_dir.scores_file(title).name]
    if evaluation.ids:
        written.insert(0, run_dir.hypotheses_file(title).name)
    if run_dir.differences_file(title).is_file():
        written.insert(1, run_dir.differences_file(title).name)
    count = f"{len(evaluation.ids)} utterances; " if evaluation.ids else ""
    files = f"{', '.join(written)} in {arguments.run}"
    console.print(f"{count}weights of {evaluation.weights}; {files}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(main, memory="use trainer.device=cpu, or a smaller decode.beam if there is a beam")
