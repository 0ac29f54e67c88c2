"""Compares the optimizer-probe measurements of runs: python -m famx.spectra RUN [RUN...]"""

import os
from pathlib import Path

from rich.console import Console

from famx import files
from famx.analysis.spectra import read_spectra, spectra_table
from famx.analysis.spectra_plot import draw
from famx.config.command import Parser, run_command
from famx.monitoring.optimizer_probe import WINDOW
from famx.training.sweep_dir import find_runs

MIN_WIDTH = 180  # of the table, in characters


def main() -> int:
    """Prints a table for each run and draws a picture of all; returns the exit status."""
    parser = Parser(
        prog="python -m famx.spectra",
        description="Compares the optimizer-probe measurements of runs.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder of a run, or of a sweep for all its runs"
    )
    parser.add_argument(
        "--png", type=Path, help="file of the picture; default: spectra.png next to the runs"
    )
    arguments = parser.parse_args()

    # runs, titled by their paths below the folder that they share
    folders = find_runs(arguments.runs)
    shared = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    runs = {}
    for folder in folders:
        title = shared.name
        if len(folders) > 1:
            title = str(folder.resolve().relative_to(shared))
        runs[title] = read_spectra(folder)
    # a wrong --png raises before anything is printed
    file = files.check_png_path(arguments.png or shared / "spectra.png")

    # a narrow terminal or a pipe would cut columns
    console = Console(highlight=False, markup=False, width=max(MIN_WIDTH, Console().width))
    console.print(
        "Power of gradients over the steps, white noise = 1; band 1 is the slowest.\n"
        f"95 % intervals are over reports {WINDOW} steps apart, from {2 * WINDOW} steps on.\n"
        "lag 1: correlation of a gradient with that of the step before; white: tensors that pass a "
        "test of white noise;\nin effect: momentum by which updates follow earlier updates."
    )
    for title, summaries in runs.items():
        console.print(spectra_table(title, summaries))
    with files.report_os_errors(file):
        draw(runs, file)
    console.print(f"picture: {file}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_command(main)
