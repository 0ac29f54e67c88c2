"""Handwritten digits of 8 x 8 pixels, from scikit-learn (Alpaydin & Kaynak 1998) or a file."""

import gzip
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from famx.data._paths import typed_path
from famx.data._tokenizers import train_tokenizer
from famx.data.base import Dataset, check_split
from famx.nn.batch import Example
from famx.notation import Modality, Subwords, UserError
from famx.registry import register

SIDE = 8  # pixels
LARGEST = 16  # value of a black pixel
SPLIT_SEED = 0  # of the order in which images are divided among the splits


@register
class DigitImages(Dataset):
    """1,797 images with the labels 0 to 9; train is 70 % of them, dev and test 15 % each.

    The images are divided at random, the same way in every run. A pixel is from -1 to 1.

    Args:
        split: "train", "dev" or "test".
        path: CSV file (also .gz) with an image in each line: 64 pixels from 0 to 16, row by row,
            then the label; empty for the images that scikit-learn contains.
    """

    modality = Modality.IMAGE
    path_options = ("path",)

    def __init__(self, split: str, *, path: str = "") -> None:
        check_split(split, self.splits)
        table = _read_table(typed_path(path)) if path else _read_sklearn()
        # a random order, of which each split is a part
        order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
        borders = [0, round(0.7 * len(table)), round(0.85 * len(table)), len(table)]
        number = self.splits.index(split)
        rows = order[borders[number] : borders[number + 1]]
        if not len(rows):
            raise UserError(f"data.path={path} has {len(table)} images, too few for {split}")
        pixels = torch.from_numpy(table[rows, :-1] / (LARGEST / 2) - 1)
        self._images = pixels.float().view(-1, SIDE, SIDE, 1)
        self.ids = [f"digit-{row:04d}" for row in rows]
        self.texts = [str(int(label)) for label in table[rows, -1]]
        self.lengths = [float(SIDE)] * len(rows)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        file = folder / "digits.csv.gz"
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, LARGEST + 1, (20, SIDE * SIDE))
        with gzip.open(file, "wt") as stream:
            np.savetxt(stream, np.c_[pixels, np.arange(20) % 3], fmt="%d", delimiter=",")
        return {"path": str(file)}

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], self._images[index], self.texts[index])

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Builds a tokenizer of the characters of the labels."""
        return train_tokenizer(self.texts, special_tokens, vocab_size, subwords)


def _read_sklearn() -> np.ndarray:
    """Returns the images and labels that scikit-learn contains, one a row."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data=digit_images reads the images of scikit-learn: pip install scikit-learn, or set "
            "data.path=FILE"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return np.c_[pixels, labels]


def _read_table(path: Path) -> np.ndarray:
    """Reads a file of images.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file
            table = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"data.path={path} cannot be read: {error}") from error
    columns = SIDE * SIDE + 1
    if table.shape[1] != columns:
        raise UserError(f"data.path={path} has {table.shape[1]} columns, not {columns}")
    pixels = table[:, :-1]
    if not ((pixels >= 0) & (pixels <= LARGEST)).all():
        raise UserError(f"data.path={path} has pixels outside of 0 to {LARGEST}")
    return table
