"""Data sets: the interface of map-style data sets of speech or text, one for each split."""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int16
from tokenizers import Tokenizer

from famx.data._tokenizers import train_tokenizer
from famx.nn.batch import Example
from famx.notation import Modality, UserError, suggest


class Dataset(ABC):
    """One split of a data set, whose items are a function of (seed, epoch, index) alone.

    A part's constructor takes `split` (and `seed`, where something is random) and hyperparameters.

    Attributes:
        modality: modality of its examples.
        splits: its splits; "train" and "dev" must be among them, the others are tests.
        normaliser: normalisation of its texts, "basic" or "none"; stored with its scores.
        path_options: hyperparameters that are paths. A run stores them as absolute paths, so that
            it can be used from any folder.
        ids: names of the examples, unique over all splits.
        texts: texts of the examples; empty strings if they are not known or not needed.
        lengths: lengths of the examples, in seconds or in tokens to predict.
        skip_bad: whether an example that cannot be read is skipped with a warning; otherwise its
            error ends the run.
    """

    modality: ClassVar[Modality]
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    normaliser: ClassVar[str] = "none"
    path_options: ClassVar[tuple[str, ...]] = ()

    ids: list[str]
    texts: list[str]
    lengths: list[float]
    skip_bad: bool = False

    @classmethod
    @abstractmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Writes a tiny corpus into an empty folder, with which contracts and tests build the part.

        Returns:
            The hyperparameters that read the corpus; {} if the part needs none.
        """

    @abstractmethod
    def build_tokenizer(self, vocab_size: int = 0, special_tokens: Sequence[str] = ()) -> Tokenizer:
        """Builds the tokenizer of the texts.

        Args:
            vocab_size: number of subwords; 0 for the default of the data set, mostly characters.
            special_tokens: tokens that a task needs and no text contains; they get the first ids.
        """

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, epoch: int) -> "Dataset":
        """Returns the data set of an epoch; some data sets choose other examples in each epoch."""
        return self

    def use_cache(self, n_bytes: int) -> None:
        """Lets the data set store decoded examples in at most so much memory; by default, none.

        Args:
            n_bytes: limit of the memory, which processes that read the data set should share.
        """
        return


class Speech(Dataset):
    """Recordings with their texts; a subclass implements `samples` and `example`.

    Args:
        ids: names of the recordings.
        texts: normalised texts of the recordings.
        speakers: speakers of the recordings; empty strings if they are not known.
        lengths: durations in seconds.
    """

    modality = Modality.SPEECH
    normaliser = "basic"

    def __init__(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        speakers: Sequence[str],
        lengths: Sequence[float],
    ) -> None:
        self.ids = list(ids)
        self.texts = list(texts)
        self.speakers = list(speakers)
        self.lengths = list(lengths)

    @abstractmethod
    def samples(self, index: int) -> Int16[np.ndarray, " n"]:
        """Returns the samples of one recording, 16 kHz mono."""

    def __getitem__(self, index: int) -> Example:
        # 16-bit integers to floats in [-1, 1)
        signal = torch.from_numpy(self.samples(index)).float() / 2**15
        return Example(self.ids[index], signal, self.texts[index])

    def build_tokenizer(self, vocab_size: int = 0, special_tokens: Sequence[str] = ()) -> Tokenizer:
        """Builds a tokenizer of the characters of the texts, or of `vocab_size` subwords."""
        return train_tokenizer(self.texts, special_tokens, vocab_size)


def check_split(split: str, splits: Sequence[str]) -> None:
    """Raises a UserError if the split is not one of `splits`."""
    if split not in splits:
        raise UserError(f"there is no split {split!r}{suggest(split, splits)}")


def normalise_basic(text: str) -> str:
    """Normalises a text: NFKC, lower case, letters, digits, apostrophes inside words, one space."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    # letters, marks and numbers stay; everything else separates words
    characters = []
    for character in text:
        in_word = character == "'" or unicodedata.category(character)[0] in "LMN"
        characters.append(character if in_word else " ")
    words = [word.strip("'") for word in "".join(characters).split()]
    return " ".join(word for word in words if word)
