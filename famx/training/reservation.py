"""Folders that are reserved for a run before it begins, so that no other run uses them."""

import itertools
from pathlib import Path

from famx.training.run_dir import LOCK


def reserve_folder(path: str) -> str:
    """Creates a folder that no other run uses: the path, or the path with a number.

    A folder that cannot be created is reported where the run writes into it.
    """
    for number in itertools.count(1):
        folder = Path(path if number == 1 else f"{path}_{number}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError:
            return path
        return str(folder)
    raise AssertionError("the numbers do not end")


def remove_reserved(folder: Path) -> None:
    """Removes the folder of a run that was refused, unless it has files."""
    if all(path.name == LOCK for path in folder.iterdir()):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
