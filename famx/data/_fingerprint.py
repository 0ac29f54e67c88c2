"""Digests of data sets: what changed since a run began, and recordings that splits share."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SAMPLED_BYTES = 4096  # of a file, in its middle
UNREADABLE = "unreadable"  # digest of a file that cannot be read


class Stamp(NamedTuple):
    """The size of a file and its times in nanoseconds, which change with its content.

    The time of the content (`written`) can be set, as copying programs do; the other one cannot.
    """

    size: int
    written: int
    changed: int


def stamp_of(file: str | Path) -> Stamp | None:
    """Returns the stamp of a file, None if it does not exist."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # ValueError for a NUL in the path
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def digest(values: Iterable[object]) -> str:
    """Returns the SHA-256 digest of values in their order."""
    total = hashlib.sha256()
    for value in values:
        # the length separates a value from the next
        encoded = str(value).encode(errors="surrogateescape")
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.hexdigest()


def fingerprint(
    ids: Sequence[str], texts: Sequence[str], lengths: Sequence[float], files: Sequence[str]
) -> dict[str, str]:
    """Returns a digest of each aspect of a split, of which only `order` depends on the order.

    Args:
        ids, texts, lengths: one per example.
        files: files of the split, in the order of the recordings.
    """
    rows = sorted(zip(ids, texts, lengths, strict=True))
    aspects = {
        "order": digest(ids),
        "names": digest(name for name, _, _ in rows),
        "texts": digest(f"{name}\t{text}" for name, text, _ in rows),
        "lengths": digest(f"{name}\t{length:.3f}" for name, _, length in rows),
    }
    if files:
        aspects["recordings"] = digest(sorted(sample_digest(file) for file in files))
    return aspects


def digest_of(aspects: Mapping[str, str]) -> str:
    """Returns one digest of all aspects of a split but its order, in 16 digits."""
    return digest(f"{name} {value}" for name, value in aspects.items() if name != "order")[:16]


def sample_digest(file: str) -> str:
    """Returns a digest of a file's size and the bytes in its middle; neither its path nor time."""
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - SAMPLED_BYTES) // 2)
            return digest([size, stream.read(SAMPLED_BYTES).hex()])
    except OSError:
        # reported by name when it is read
        return UNREADABLE


def describe_changes(
    saved: Mapping[str, Mapping[str, str]], current: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Returns a phrase for each split whose data differs from that of the saved digests."""
    phrases = []
    for split in saved.keys() & current.keys():
        old = saved[split]
        new = current[split]
        changed = [aspect for aspect in new if aspect in old and old[aspect] != new[aspect]]
        # other examples have another order, other texts and other lengths
        if "names" in changed:
            changed = ["names"]
        if changed:
            phrases.append(f"{split} ({', '.join(changed)})")
    return sorted(phrases)


def shared_files(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the files of `second` whose content is in `first`, each with the file there.

    Only files of equal size are read, and completely only if the bytes in their middle are equal.
    """
    candidates = list(second)
    others = list(first)
    for key in (_size, sample_digest, _content_digest):
        keys = {file: key(file) for file in [*candidates, *others]}
        common = {keys[file] for file in candidates} & {keys[file] for file in others}
        candidates = [file for file in candidates if keys[file] in common]
        others = [file for file in others if keys[file] in common]
    by_content = {keys[file]: file for file in reversed(others)}
    return [(file, by_content[keys[file]]) for file in candidates]


def recordings_of(
    files: Iterable[str],
    contents: Iterable[str] = (),
    earlier: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[str]]:
    """Returns the files of each digest by which `shared_with_run` recognises recordings.

    Args:
        contents: examples that are no files; their digests have none.
        earlier: recordings to which those of `files` are added.
    """
    recordings = {sampled: list(known) for sampled, known in (earlier or {}).items()}
    recordings |= {content_digest(content): [] for content in contents}
    for file in files:
        known = recordings.setdefault(sample_digest(file), [])
        path = str(Path(file).absolute())
        if path not in known:
            known.append(path)
    recordings.pop(UNREADABLE, None)
    return recordings


def content_digest(content: str) -> str:
    """Returns the digest of an example that is no file, in 16 digits."""
    return digest([content])[:16]


def shared_with_run(
    recordings: Mapping[str, Sequence[str]], files: Iterable[str]
) -> list[tuple[str, str]]:
    """Returns the files that are among the recordings of a run, each with the file there.

    Args:
        recordings: what `recordings_of` returned for the run. The contents are compared completely
            where its file still exists; otherwise by their sizes and the bytes in their middle.
        files: files to look for.
    """
    shared = []
    for file in files:
        sampled = sample_digest(file)
        for other in recordings.get(sampled, []):
            exists = sample_digest(other) == sampled
            if not exists or _content_digest(other) == _content_digest(file):
                shared.append((file, other))
                break
    return shared


def _size(file: str) -> str:
    # two files that do not exist are not the same recording
    return str(os.path.getsize(file)) if os.path.isfile(file) else file


def _content_digest(file: str) -> str:
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
