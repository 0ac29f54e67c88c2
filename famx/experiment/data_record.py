"""The data that a run was trained with: what changed since, and recordings that it is scored on."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from famx.data._fingerprint import (
    content_digest,
    describe_changes,
    recordings_of,
    shared_files,
    shared_with_run,
)
from famx.data.base import Dataset
from famx.experiment.build import Experiment
from famx.training.run_dir import RunDir

log = logging.getLogger(__name__)

LONGEST = "longest"  # key of the length of the longest example, in seconds, tokens or rows


def check_data(experiment: Experiment, run_dir: RunDir) -> None:
    """Records the data of a run that begins or goes on.

    Warnings name what changed since the run began, and recordings of train in other splits.
    """
    train = experiment.loader("train").dataset
    datasets = {split: experiment.loader(split).dataset for split in train.splits}
    # a run that is resumed has digests already
    current = {split: dataset.fingerprint() for split, dataset in datasets.items()}
    # sounds that are added to the recordings of train
    current["train"] |= experiment.loader("train").load_sounds().fingerprint()
    saved = run_dir.read_record(run_dir.data_file)
    changes = describe_changes(saved, current)
    if changes:
        log.warning(
            "the data has changed since %s was saved, and is used as it is now: %s",
            run_dir,
            ", ".join(changes),
        )
    # the weights come from all recordings that the run has had
    longest = {"train": max([*train.lengths, longest_of_training(saved)])}
    earlier = run_dir.read_record(run_dir.recordings_file)
    recordings = recordings_of(train.files(), train.contents(), earlier)
    run_dir.write_files(
        {
            run_dir.data_file: json.dumps(current | {LONGEST: longest}, indent=1) + "\n",
            run_dir.recordings_file: json.dumps(recordings, indent=1) + "\n",
        }
    )
    for split, dataset in datasets.items():
        if split != "train":
            shared = shared_files(train.files(), dataset.files())
            _warn(shared, f"the {len(dataset.files())} recordings of {split} are in train too")
            _warn_of_contents(dataset, recordings, f"{split} are in train too")


def longest_of_training(record: Mapping[str, Any]) -> float:
    """Returns the length of the longest training example; 0 if the record does not have it.

    Args:
        record: content of `data.json`.
    """
    lengths = record.get(LONGEST)
    longest = lengths.get("train") if isinstance(lengths, dict) else None
    return float(longest) if isinstance(longest, int | float) else 0.0


def warn_of_training_recordings(experiment: Experiment, run_dir: RunDir, split: str) -> None:
    """Warns if a split, perhaps of other data, has recordings that the run was trained with."""
    if split == "train":
        return
    dataset = experiment.loader(split).dataset
    files = dataset.files()
    recordings = run_dir.read_record(run_dir.recordings_file)
    shared = shared_with_run(recordings, files)
    _warn(shared, f"the {len(files)} recordings of {split} are in the training of {run_dir}")
    _warn_of_contents(dataset, recordings, f"{split} are in the training of {run_dir}")


def _warn_of_contents(dataset: Dataset, recordings: Mapping[str, Any], phrase: str) -> None:
    """Warns of examples that are no files, and whose digests are among those of the training."""
    contents = dataset.contents()
    shared = [content for content in contents if content_digest(content) in recordings]
    if shared:
        log.warning(
            "%d of the %d examples of %s; the first: %s",
            len(shared),
            len(contents),
            phrase,
            shared[0],
        )


def _warn(shared: Sequence[tuple[str, str]], phrase: str) -> None:
    """Warns of files that are shared, each with the file in the training."""
    if not shared:
        return
    file, other = shared[0]
    log.warning(
        "%d of %s; the first: %s%s",
        len(shared),
        phrase,
        file,
        "" if file == other else f", which is {other} there",
    )
