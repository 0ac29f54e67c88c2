"""Compares the scores of runs: python -m famx.compare RUN [RUN...] [--split S] [--metric M]"""

import os
from pathlib import Path

from rich.console import Console

from famx import files
from famx.analysis.comparison import compare, gene_table, notes, table
from famx.analysis.comparison_plot import draw
from famx.analysis.report import report_files, write_report
from famx.config.command import Parser, run_command
from famx.registry import load
from famx.training.sweep_dir import find_runs

MIN_WIDTH = 88  # of the table, in characters


def main() -> int:
    """Prints a table per test, and writes a picture and a report; returns the exit status."""
    arguments = build_parser().parse_args()
    # everything that can fail comes before the first output
    load("famx")
    folders = find_runs(arguments.runs)
    comparisons = compare(
        folders,
        arguments.split,
        arguments.metric,
        arguments.mixed_code,
        arguments.baseline,
        arguments.trust_edits,
    )
    # by default the picture is in the innermost folder that contains all runs
    file = arguments.png
    if file is None:
        parents = [folder.resolve().parent for folder in folders]
        file = Path(os.path.commonpath(parents)) / "compare.png"
    files.check_png_path(file)

    # a narrow terminal or a pipe would cut columns
    console = Console(highlight=False, markup=False, width=max(MIN_WIDTH, Console().width))
    for comparison in comparisons:
        console.print(table(comparison))
        console.print(*notes(comparison), sep="\n", soft_wrap=True)
        effects = gene_table(comparison)
        if effects is not None:
            console.print(effects)
    # earlier files are better than empty ones
    if not any(comparison.differences for comparison in comparisons):
        return 0
    replaced = [path.name for path in (file, *report_files(file.parent)) if path.exists()]
    with files.report_os_errors(file):
        draw(comparisons, file)
        reports = write_report(comparisons, file.parent)
    console.print(f"picture: {file}", soft_wrap=True)
    console.print("report:", *reports, soft_wrap=True)
    if replaced:
        console.print(f"earlier files are replaced: {', '.join(replaced)}", soft_wrap=True)
    return 0


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(
        prog="python -m famx.compare",
        description="Compares the scores of runs with different settings.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folder of a run, or of a sweep for all of its runs; the setting of the first run is "
        "the baseline",
    )
    parser.add_argument(
        "--split", default="test", help="test (default), dev, or another split that was scored"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="wer, cer, loss or another score of the task; default: wer, else the first score of "
        "the task, else loss",
    )
    parser.add_argument(
        "--png", type=Path, help="file of the picture; default: compare.png next to the runs"
    )
    parser.add_argument(
        "--baseline",
        metavar="WORDS",
        help="words of the setting that all others are compared with, such as optim=adamw",
    )
    parser.add_argument(
        "--mixed-code",
        action="store_true",
        help="compare runs although they were trained with different code",
    )
    parser.add_argument(
        "--trust-edits",
        action="store_true",
        help="compare runs although their config has changed since the training",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
