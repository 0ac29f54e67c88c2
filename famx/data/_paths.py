"""Paths of the user's files, in whichever Unicode form their names were written."""

import os
import stat
import unicodedata
from pathlib import Path

from famx.notation import UserError

ROOT = 0  # user id of the administrator, who can change any file


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


class RecordingFolder:
    """Locates the recordings of a manifest, hundreds of thousands of them in seconds.

    Args:
        folder: folder of the manifest.
        allow_outside: whether recordings may be outside of the folder. A link leads there only if
            the owner of the folder, the user or root has made it.
    """

    def __init__(self, folder: Path, allow_outside: bool) -> None:
        self.folder = folder
        self.allow_outside = allow_outside
        # with one separator at its end
        self._root = os.path.join(os.path.realpath(folder), "")
        # folder as it is written -> its absolute path without links
        self._parents: dict[str, str] = {}

    def locate(self, path: str, location: str) -> str:
        """Returns the absolute path of a recording, without links.

        Args:
            path: path as it is written.
            location: file and line, for messages.

        Raises:
            UserError: there is no such file, or it is outside of the folder and must not be.
        """
        try:
            file = self._regular_file(path)
            exists = bool(file)
            if not exists:
                file = str(existing_path(self.folder / path).resolve())
                exists = os.path.isfile(file)
        except (OSError, ValueError) as error:  # too long, or with a NUL
            raise UserError(f"{location}: {path!r} is not a path ({error})") from error
        is_inside = file.startswith(self._root)
        if not (is_inside or self.allow_outside):
            raise UserError(
                f"{location}: {path} leaves the folder {self.folder}, and data.allow_outside=false"
            )
        if not exists:
            raise UserError(f"{location}: there is no file {self.folder / path}")
        if not is_inside:
            self._require_trusted_links(path, location)
        return file

    def _regular_file(self, path: str) -> str:
        """Returns a file that is no link in a folder that is known; empty for any other path."""
        written = os.path.join(self.folder, os.fsdecode(path.encode(errors="surrogateescape")))
        parent, name = os.path.split(written)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        file = os.path.join(self._parents[parent], name)
        try:
            return file if stat.S_ISREG(os.lstat(file).st_mode) else ""
        except FileNotFoundError:  # perhaps in another Unicode form
            return ""

    def _require_trusted_links(self, path: str, location: str) -> None:
        """Checks that neither a part of the path nor the path is a link of another person."""
        owners = (os.stat(self.folder).st_uid, os.getuid(), ROOT)
        part = self.folder
        for name in Path(path).parts:
            part = part / name
            status = os.lstat(existing_path(part))
            if stat.S_ISLNK(status.st_mode) and status.st_uid not in owners:
                raise UserError(
                    f"{location}: {path} leaves the folder {self.folder} by the link {part}, "
                    "which another person has made"
                )
