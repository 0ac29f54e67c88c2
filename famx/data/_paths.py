"""Paths of the user's files, in whichever Unicode form their names were written."""

import os
import unicodedata
from pathlib import Path


def typed_path(path: str) -> Path:
    """Returns a path as it was typed, with the user's home in place of `~` if there is one."""
    # unlike Path.expanduser, accepts a user without a home
    return Path(os.path.expanduser(path))


def existing_path(path: Path) -> Path:
    """Returns the path, or its other Unicode form if only that one exists.

    Some systems write `é` as one code point (NFC), others as a letter and a mark (NFD), so that a
    list and the files it names may differ. If neither exists, it is the path as it is written.
    """
    written = _in_bytes_of_utf8(path)
    if written.exists():
        return written
    for form in ("NFC", "NFD"):
        other = _in_bytes_of_utf8(Path(unicodedata.normalize(form, str(path))))
        if other.exists():
            return other
    return written


def _in_bytes_of_utf8(path: Path) -> Path:
    """Returns the path whose bytes are UTF-8, also in a locale of another encoding."""
    return Path(os.fsdecode(str(path).encode(errors="surrogateescape")))
