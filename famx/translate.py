"""Translates lines of text: python -m famx.translate RUN [FILE...] [decode=...]"""

import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

from famx.config.command import Parser, run_command, split_parts
from famx.files import printable
from famx.notation import UserError
from famx.training.run_dir import open_run

OVERRIDES = ("decode=", "decode.", "trainer.device=", "trainer.threads=")
LINES_AT_ONCE = 1000


def main() -> int:
    """Prints a line for each line of the files, in their order; of standard input without files.

    Returns:
        The exit status.
    """
    arguments = _parser().parse_intermixed_args()
    parts, words = split_parts(arguments.words)
    # a word is a file if a file of that name exists
    overrides = [word for word in words if word.startswith(OVERRIDES) and not Path(word).exists()]
    files = [word for word in words if word not in overrides]
    # the user's parts are registered before the model is built
    open_run(arguments.run, parts, arguments.trust_edits)
    import famx

    recognizer = famx.load(arguments.run, arguments.checkpoint, overrides, arguments.trust_edits)
    # refuses a run of another task, and missing files, before the first line
    recognizer.translate([])
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"there is no file {printable(file)}")
    # a line that is typed is answered at once
    size = 1 if not files and sys.stdin.isatty() else LINES_AT_ONCE
    lines = _lines(files)
    while part := list(islice(lines, size)):
        for translation in recognizer.translate(part):
            # a terminal would obey control characters
            print(printable(translation) if sys.stdout.isatty() else translation, flush=True)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m famx.translate",
        description="Translates texts with a run of task=translate.",
    )
    parser.add_run()
    parser.add_argument(
        "words",
        metavar="FILE",
        nargs="*",
        default=[],
        help="files in UTF-8 with a text in each line, none for standard input; also decode=NAME, "
        "decode.KEY=VALUE, trainer.device=NAME, famx_parts=[file.py]",
    )
    return parser


def _lines(files: Sequence[str]) -> Iterator[str]:
    """Yields the lines of files, of standard input without files.

    Raises:
        UserError: a line is not UTF-8.
    """
    try:
        for file in files:
            with Path(file).open(encoding="utf-8-sig") as lines:
                yield from lines
        if not files:
            yield from TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"a line is not UTF-8: {error.reason} at byte {error.start}") from error


if __name__ == "__main__":
    run_command(main, memory="use a smaller decode.beam if there is a beam, or trainer.device=cpu")
