"""Files of a run: no links, atomic writes, system errors as one sentence, text safe to print."""

import contextlib
import errno
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from famx.notation import UserError

# a disk that is full or over quota, and a file beyond the limit of the process or the file system
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# messages of torch on a CPU and on a GPU
NO_MEMORY = ("can't allocate memory", "out of memory")
# the process, or the machine, has too many open files
NO_HANDLES = (errno.EMFILE, errno.ENFILE)
# errors that famx does not cause: no space, too many open files, read-only, no permission, a file
# in place of a folder or a folder in place of a file, a name that is too long
REFUSALS = (
    *NO_SPACE,
    *NO_HANDLES,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


@contextlib.contextmanager
def report_os_errors(path: str | Path = "the disk") -> Iterator[None]:
    """Raises errors of `REFUSALS` as a UserError, one sentence that names the path.

    Raises:
        UserError: the disk is full or read-only, or the path cannot be created.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise UserError(f"{error.filename or path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def report_memory_errors(remedy: str) -> Iterator[None]:
    """Raises the errors of exhausted memory as a UserError.

    Args:
        remedy: what the user can do, for the end of the message.

    Raises:
        UserError: the memory of the machine or of the GPU is exhausted.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        is_system = isinstance(error, MemoryError) or (
            isinstance(error, OSError) and error.errno == errno.ENOMEM
        )
        # torch raises RuntimeError
        if not is_system and not any(phrase in str(error) for phrase in NO_MEMORY):
            raise
        reason = str(error).partition("\n")[0] or "MemoryError"
        raise UserError(f"the memory is exhausted ({reason}): {remedy}") from error


def require_handles(error: Exception, path: Path) -> None:
    """Checks that an error does not come from too many open files.

    Raises:
        UserError: it does; the file itself may be sound.
    """
    # libraries raise other errors, which contain the message of the system
    for reason in map(os.strerror, NO_HANDLES):
        if reason in str(error):
            raise UserError(
                f"{path} cannot be read: {reason}; raise the limit of the shell (ulimit -n)"
            ) from error


@contextlib.contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """Silences threads that fail with one of `REFUSALS`, which the main thread reports.

    TensorBoard's writer thread stops at such an error, and the next write in the main thread raises
    it again.
    """
    default_hook = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        error = failure.exc_value
        if not (isinstance(error, OSError) and error.errno in REFUSALS):
            default_hook(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = default_hook


def check_png_path(file: Path) -> Path:
    """Returns the file of `--png`, if an image can be written there.

    Raises:
        UserError: its name does not end in .png, or its folder does not exist.
    """
    if file.suffix != ".png" or not file.stem or file.is_dir() or not file.parent.is_dir():
        raise UserError(
            f"--png {file} must be a file whose name ends in .png, in a folder that exists"
        )
    return file


def write_atomic(file: Path, text: str) -> None:
    """Writes a file completely, or leaves it unchanged.

    Raises:
        UserError: the disk is full or read-only, or the file cannot be created.
    """
    temp_path = file.with_name(f".{file.name}.tmp")
    with report_os_errors(file):
        try:
            # a new file, so that no link is followed
            temp_path.unlink(missing_ok=True)
            temp_path.touch(exist_ok=False)
            # a name of a file that is not UTF-8 is written with escapes
            temp_path.write_text(text, encoding="utf-8", errors="backslashreplace")
            temp_path.replace(file)
        except OSError:
            temp_path.unlink(missing_ok=True)
            raise


def digest(file: Path) -> str:
    """Returns the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_start(file: Path, size: int) -> str:
    """Returns the SHA-256 of the first `size` bytes of a file, or of all if it has fewer."""
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(size)).hexdigest()


def require_regular_files(folder: Path, writing: bool = False) -> None:
    """Checks that a folder has only regular files and folders: what is written stays inside it.

    A folder of another person could have a link to a file of the user in place of a log, or a pipe
    that never answers.

    Args:
        writing: whether files will be appended to, so that none may have a second name.

    Raises:
        UserError: there is a link, a pipe, a socket or a device.
    """
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                kind = "a link"
            elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                kind = "a pipe, a socket or a device"
            elif writing and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                kind = "a hard link: the same file has another name elsewhere"
            else:
                continue
            raise UserError(
                f"{printable(str(path))} is {kind}, but the folder of a run has regular files "
                "alone; copy the folder with cp -rL to use what it refers to"
            )


def open_regular(path: str, flags: int) -> int:
    """Opens a regular file, as the `opener` of `open`; follows no link and waits for no pipe.

    Raises:
        UserError: the path is a link, a pipe, a socket or a device.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        # ELOOP: a link; ENXIO: a pipe that nobody reads
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise UserError(f"{printable(path)} is not a regular file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{printable(path)} is not a regular file")
    return descriptor


def printable(text: str) -> str:
    """Returns a text with escapes in place of control characters, which a terminal would obey."""
    characters = []
    for character in text:
        is_safe = character.isprintable()
        characters.append(character if is_safe else character.encode("unicode_escape").decode())
    return "".join(characters)


class PrintableFormatter(logging.Formatter):
    """Formats a message as one line without control characters; a traceback may follow it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))
