"""The manifest of a checkpoint: digests of its own files, and of files of the run."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from famx import files

log = logging.getLogger(__name__)

RUN_FILES = "run_files"  # key of the manifest; all other keys are names of files

Entry = dict[str, Any]
"""Size and SHA-256 of a file: `size`, `sha256`."""
RunFiles = Mapping[str, Sequence[Entry]]
"""Accepted contents of files of the run, by name."""


def write_manifest(folder: Path, run_files: RunFiles) -> None:
    """Writes `manifest.json`, which lists all files that are in the folder."""
    manifest: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        manifest[file.name] = {"size": file.stat().st_size, "sha256": files.digest(file)}
    manifest[RUN_FILES] = _sealed(run_files)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def run_files(folders: Iterable[Path]) -> RunFiles:
    """Returns the digests of files of the run that the manifests of checkpoints accept, by name."""
    accepted: dict[str, list[Entry]] = {}
    for folder in folders:
        section = read_manifest(folder).get(RUN_FILES)
        if section is None or not _is_sealed(section):
            continue
        for name, entries in section["files"].items():
            readable = [entry for entry in entries if _has_size(entry)]
            accepted.setdefault(name, []).extend(readable)
    return accepted


def accept_run_files(folders: Iterable[Path], accepted: RunFiles) -> None:
    """Adds digests of files of the run to the manifests of checkpoints."""
    for path in folders:
        manifest = read_manifest(path)
        if not manifest:
            continue
        merged = {name: list(entries) for name, entries in run_files([path]).items()}
        for name, entries in accepted.items():
            known = merged.setdefault(name, [])
            known += [entry for entry in entries if entry not in known]
        manifest[RUN_FILES] = _sealed(merged)
        files.write_atomic(path / "manifest.json", json.dumps(manifest, indent=1))


def read_record(file: Path, folders: Iterable[Path]) -> dict[str, Any]:
    """Reads a file of a run that contains a mapping; an empty one if the run has none.

    A warning names a file that is missing, damaged, or not the one that the run saved.

    Args:
        folders: checkpoints of the run.
    """
    content = file.read_bytes() if file.is_file() else b""
    accepted = run_files(folders).get(file.name)
    if accepted is None and not content:
        return {}
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    is_saved = accepted is None or entry_of(content) in accepted
    if is_saved and isinstance(record, dict):
        return record
    reason = "differs from the one that the run saved" if content else "is missing"
    log.warning("%s %s and is not used", file, reason)
    return {}


def entry_of(content: bytes) -> Entry:
    """Returns the size and the digest of a content."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sealed(accepted: RunFiles) -> dict[str, Any]:
    """Returns the section of files of the run, with a digest of its own."""
    plain = {name: list(entries) for name, entries in accepted.items()}
    return {"files": plain, "sha256": _digest(plain)}


def _is_sealed(section: Any) -> bool:
    """Returns whether a section of files of the run is as it was written."""
    if not isinstance(section, dict) or section.keys() != {"files", "sha256"}:
        return False
    by_name = section["files"]
    if not isinstance(by_name, dict) or not all(isinstance(x, list) for x in by_name.values()):
        return False
    return section["sha256"] == _digest(by_name)


def _has_size(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("size")) is int


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint, empty if it cannot be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        files.require_handles(error, path)
        return {}
    return manifest if isinstance(manifest, dict) else {}


def find_damage(path: Path) -> str | None:
    """Returns what is wrong with the files of a checkpoint, None if all are as they were saved."""
    manifest = read_manifest(path)
    section = manifest.pop(RUN_FILES, None)
    if section is not None and not _is_sealed(section):
        return f"{RUN_FILES} of its manifest.json is damaged"
    if "state.json" not in manifest:
        return "its manifest.json is missing, or does not name state.json"
    for name in manifest:
        if not is_intact(path, name, manifest):
            return f"{name} differs from its manifest"
    return None


def is_intact(path: Path, name: str, manifest: Mapping[str, Any]) -> bool:
    """Returns whether a file has the size and the digest of its manifest."""
    entry = manifest.get(name)
    if not isinstance(entry, dict) or Path(name).name != name:
        return False
    file = path / name
    try:
        return file.stat().st_size == entry.get("size") and files.digest(file) == entry["sha256"]
    except (OSError, LookupError) as error:
        files.require_handles(error, file)
        return False


def are_user_parts(value: object) -> bool:
    """Returns whether a value is what a config stores of the files of the user's parts."""
    if not isinstance(value, list):
        return False
    for part in value:
        if not isinstance(part, dict) or part.keys() != {"file", "sha256"}:
            return False
        if not all(isinstance(text, str) for text in part.values()):
            return False
    return True
