"""Paths of the user's files, in whichever Unicode form their names were written."""

import unicodedata
from pathlib import Path


def existing_path(path: Path) -> Path:
    """Returns the path, or its other Unicode form if only that one exists.

    Some systems write `é` as one code point (NFC), others as a letter and a mark (NFD), so that a
    list and the files it names may differ. A path that does not exist is returned unchanged.
    """
    for form in ("NFC", "NFD"):
        if path.exists():
            return path
        other = Path(unicodedata.normalize(form, str(path)))
        if other.exists():
            return other
    return path
