"""The share of padding in the training batches of data=spoken, and of folders that are named."""

from pathlib import Path

import numpy as np

from famx.data.base import Dataset
from famx.registry import build, load
from famx.training.loader import Loader

N_EPOCHS = 4


def main(words: list[str]) -> None:
    """Prints the share of padding with the default options of the loader.

    Args:
        words: folders of data=manifest.
    """
    load("famx")
    _report("spoken", {"name": "spoken"})
    for folder in words:
        _report(Path(folder).name, {"name": "manifest", "root": folder})


def _report(name: str, options: dict[str, object]) -> None:
    dataset = build("data", options, split="train", seed=0)
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
