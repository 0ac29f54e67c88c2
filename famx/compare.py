"""Tells whether an idea helps: python -m famx.compare RUN [RUN...] [--split S] [--metric M]"""

import os
from pathlib import Path

from rich.console import Console

from famx import files
from famx.analysis.comparison import compare, gene_table, notes, table
from famx.analysis.comparison_plot import draw
from famx.config.command import Parser, run_command
from famx.registry import load
from famx.training.run_dir import find_runs

MIN_WIDTH = 88  # of the table, in characters


def main() -> int:
    """Prints a table and draws a picture of each test that runs share; returns the exit status."""
    parser = Parser(
        prog="python -m famx.compare",
        description="Tells whether runs of other settings make fewer errors.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="the folder of a run, or of a sweep for all of its runs; others are compared with "
        "the first",
    )
    parser.add_argument(
        "--split", default="test", help="test (default), dev, or another split that was scored"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="wer, cer, loss or a score of the task's own; default: wer, or else the task's first "
        "score, or loss where it has none",
    )
    parser.add_argument(
        "--png", type=Path, help="file of the picture; default: compare.png next to the runs"
    )
    arguments = parser.parse_args()

    # runs, compared before anything is printed
    load("famx")
    folders = find_runs(arguments.runs)
    comparisons = compare(folders, arguments.split, arguments.metric)
    # the picture stands next to the runs
    file = arguments.png
    if file is None:
        parents = [folder.resolve().parent for folder in folders]
        file = Path(os.path.commonpath(parents)) / "compare.png"
    files.check_png_path(file)

    # a narrow terminal or a pipe would cut columns
    console = Console(highlight=False, width=max(MIN_WIDTH, Console().width))
    for comparison in comparisons:
        console.print(table(comparison))
        console.print(*notes(comparison), sep="\n", markup=False, soft_wrap=True)
        effects = gene_table(comparison)
        if effects is not None:
            console.print(effects)
    with files.report_os_errors(file):
        draw(comparisons, file)
    console.print(f"picture: {file}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(main)
