"""Scores a run: python -m famx.evaluate RUN [--split test] [--checkpoint best|last] [decode=...]"""

from rich.console import Console

from famx.config.command import Parser, import_user_parts, run_command
from famx.training.run_dir import RunDir


def main() -> int:
    """Decodes a split, prints its error rates, writes hypotheses and scores.

    Returns:
        The exit status.
    """
    # options
    parser = Parser(
        prog="python -m famx.evaluate", description="Decodes and scores a split of a run."
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--split", default="test", help="test, dev, or another split of the run's data"
    )
    parser.add_argument(
        "--checkpoint", default="best", choices=("best", "last"), help="best on dev, or the newest"
    )
    parser.add_argument(
        "--trust-edits",
        action="store_true",
        help="use config.yaml and tokenizer.json although they have changed since the training",
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
    is_part = [word.startswith("famx_parts=") for word in arguments.overrides]
    overrides = [word for word, part in zip(arguments.overrides, is_part, strict=True) if not part]
    run_dir = RunDir(arguments.run)
    if not arguments.trust_edits:
        run_dir.require_unedited("--trust-edits")
    required = run_dir.load_config()["famx_parts"]
    import_user_parts(arguments.overrides, arguments.run, required)
    from famx.inference import Recognizer

    # scores, then the names of the files that hold them
    recognizer = Recognizer(arguments.run, arguments.checkpoint, overrides, arguments.trust_edits)
    evaluation = recognizer.evaluate(arguments.split)
    console = Console(highlight=False, markup=False)
    console.print(evaluation.table(arguments.split))
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
