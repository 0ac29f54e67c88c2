"""Data sets: the interface of map-style data sets of speech, text or images, one a split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int16
from tokenizers import Tokenizer

from famx.data._fingerprint import fingerprint
from famx.data._tokenizers import train_tokenizer
from famx.nn.batch import Example
from famx.notation import Modality, Seconds, Subwords, UserError, suggest

Unknown = Literal["error", "skip", "replace"]


class Dataset(ABC):
    """One split of a data set, whose items are a function of (seed, epoch, index) alone.

    A part's constructor takes `split` (and `seed`, where something is random) and hyperparameters.

    Attributes:
        modality: modality of its examples.
        splits: its splits; "train" and "dev" must be among them, the others are tests.
        normaliser: name of the normalisation of its texts, "none" without one; stored with its
            scores.
        path_options: hyperparameters that are paths. A run stores them as absolute paths, so that
            it can be used from any folder.
        tokenizer_options: hyperparameters that decide the tokenizer, which a trained run keeps.
        input_vocab_size: number of different token ids of its inputs, where they are not those of
            the tokenizer of the targets; None otherwise.
        ids: names of the examples, unique over all splits.
        texts: texts or labels of the examples; empty strings if they are not known or not needed.
        lengths: lengths of the examples, in seconds, in tokens (to predict, where there are no
            texts), or in rows of pixels.
        n_streamed: number of examples of a split that is read in windows, each of which is an
            epoch; ids, texts and lengths are those of the first. 0 for all other splits.
        skip_bad: whether an example that cannot be read is skipped with a warning; otherwise its
            error ends the run.
        unknown: what becomes of a dev or test text with characters that no training text has:
            "error" refuses it, "skip" leaves its example out, and "replace" leaves the characters
            out of the target, so that they are counted as errors.
    """

    modality: ClassVar[Modality]
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    path_options: ClassVar[tuple[str, ...]] = ()
    tokenizer_options: ClassVar[tuple[str, ...]] = ()
    input_vocab_size: ClassVar[int | None] = None

    ids: list[str]
    texts: list[str]
    lengths: list[float]
    n_streamed: int = 0
    skip_bad: bool = False
    normaliser: str = "none"
    unknown: Unknown = "replace"

    @classmethod
    @abstractmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Writes a tiny corpus into an empty folder, with which contracts and tests build the part.

        Returns:
            The hyperparameters that read the corpus; {} if the part needs none.
        """

    @abstractmethod
    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Builds the tokenizer of the texts.

        Args:
            vocab_size: number of subwords; 0 for the default of the data set, mostly characters.
            special_tokens: tokens that a task needs and no text contains; they get the first ids.
            subwords: kind of the subwords.
        """

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, epoch: int) -> "Dataset":
        """Returns the data set of an epoch; some data sets choose other examples in each epoch."""
        return self

    def files(self) -> Sequence[str]:
        """Returns the paths of the recordings that are read; empty where there are no files."""
        return []

    @property
    def total_length(self) -> float:
        """The sum of the lengths of all examples; that of a stream is estimated from its window."""
        total = float(sum(self.lengths))
        return total * self.n_streamed / len(self.lengths) if self.n_streamed else total

    def contents(self) -> Sequence[str]:
        """Returns the content of each example that is no file; empty where there are files.

        Examples of equal content in two splits are reported.
        """
        return []

    def fingerprint(self) -> dict[str, str]:
        """Returns a digest of each aspect of the data, by which a resumed run tells changes."""
        return fingerprint(self.ids, self.texts, self.lengths, self.files())

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Encodes items that are tokens by the tokenizer of a run; by default, does nothing.

        Raises:
            UserError: the tokenizer has no tokens for some of the text.
        """
        return

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

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Builds a tokenizer of the characters of the texts, or of `vocab_size` subwords."""
        return train_tokenizer(self.texts, special_tokens, vocab_size, subwords)


def check_max_seconds(max_seconds: Seconds) -> None:
    """Raises a UserError if the longest accepted duration is not a positive number."""
    if not max_seconds > 0:
        raise UserError(f"data.max_seconds={max_seconds} must be more than 0 seconds")


def check_split(split: str, splits: Sequence[str]) -> None:
    """Raises a UserError if the split is not one of `splits`."""
    if split not in splits:
        raise UserError(f"there is no split {split!r}{suggest(split, splits)}")
