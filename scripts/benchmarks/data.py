"""Padding of training batches, and time to the first batch of a stream."""

import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset as Table

from famx.data.base import Dataset
from famx.registry import build, load
from famx.training.loader import Loader

N_EPOCHS = 4
N_SHARDS = 4
ROWS = 100  # of a row group, as in the data sets of the hub


def main(words: list[str]) -> None:
    """Prints the share of padding, and how long a stream takes to its first batch.

    Args:
        words: folders of data=manifest.
    """
    load("famx")
    _report_padding("spoken", build("data", {"name": "spoken"}, split="train", seed=0))
    for folder in words:
        options = {"name": "manifest", "root": folder}
        dataset = build("data", options, split="train", seed=0)
        _report_padding(Path(folder).name, dataset)
        seconds = seconds_to_first_batch(dataset)
        print(f"{seconds:.1f} s to the first batch of a stream of {Path(folder).name} (gate 5 s)")


def _report_padding(name: str, dataset: Dataset) -> None:
    print(f"{100 * padding(dataset):.2f} % of the batches of {name} is padding (gate 4 %)")


def padding(dataset: Dataset) -> float:
    """Returns the share of padding in the batches of the first epochs, from their plans."""
    loader = Loader(dataset, None)
    seconds = 0.0
    padded = 0.0
    for epoch in range(N_EPOCHS):
        lengths = np.asarray(dataset.at(epoch).lengths) / loader._augmentation(epoch).speed
        for batch in loader.plan(epoch):
            seconds += lengths[batch.indices].sum()
            padded += len(batch.indices) * lengths[batch.indices].max()
    return 1 - seconds / padded


def seconds_to_first_batch(dataset: Dataset) -> float:
    """Returns the seconds from nothing to the first batch of a stream of parquet files."""
    rows = []
    for file, text in zip(dataset.files(), dataset.texts, strict=True):
        rows.append({"audio": {"path": None, "bytes": Path(file).read_bytes()}, "text": text})
    table = Table.from_list(rows)
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(N_SHARDS):
            file = f"{folder}/train-{shard:05d}-of-{N_SHARDS:05d}.parquet"
            table.shard(N_SHARDS, shard).to_parquet(file, batch_size=ROWS)
        started = time.perf_counter()
        options = {"name": "hub_stream", "path": folder}
        stream = build("data", options, split="train", seed=0)
        next(Loader(stream, stream.build_tokenizer()).train_batches())
        return time.perf_counter() - started
