"""Files that a crash or a full disk cannot spoil, and what a disk refuses, in one sentence."""

import contextlib
import errno
import threading
from collections.abc import Iterator
from pathlib import Path

from famx.notation import UserError

# what is not a fault of famx: full, read-only, forbidden, too long a name, or of another kind than is needed
REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


@contextlib.contextmanager
def report_os_errors(path: str | Path = "the disk") -> Iterator[None]:
    """Turns a refusal of the disk into a sentence that names the path.

    Raises:
        UserError: the disk is full, read-only, or something else stands where a file or folder is to be.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise UserError(f"{error.filename or path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """Lets no thread print what the disk refuses it: who writes through it has that raised at the next write."""
    before = threading.excepthook

    def quiet(ended: threading.ExceptHookArgs) -> None:
        if not (isinstance(ended.exc_value, OSError) and ended.exc_value.errno in REFUSALS):
            before(ended)

    threading.excepthook = quiet
    try:
        yield
    finally:
        threading.excepthook = before


def check_png_path(file: Path) -> Path:
    """The file, if a picture can be put there.

    Raises:
        UserError: its name does not end in .png, or its folder does not exist.
    """
    if file.suffix != ".png" or not file.stem or file.is_dir() or not file.parent.is_dir():
        raise UserError(
            f"--png {file} must be a file whose name ends in .png, in a folder that exists"
        )
    return file


def write_atomic(file: Path, text: str) -> None:
    """Writes a file whole, or leaves it as it was."""
    aside = file.with_name(f".{file.name}.tmp")
    with report_os_errors(file):
        try:
            aside.write_text(text)
            aside.replace(file)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
