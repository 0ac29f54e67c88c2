"""An n-gram model with backoff as arrays, in which many words are looked up at once."""

import math

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from famx.decode._arpa import Arpa, NGrams
from famx.notation import UserError

UNKNOWN = "<unk>"
START = "<s>"
END = "</s>"
UNKNOWN_LOG10 = -10.0  # of what the file does not have, if it has no <unk> either


class NGramModel:
    """p(w | context) = p of the longest listed n-gram, times the backoffs of longer contexts.

    State 0 is the empty context, and state i + 1 is n-gram i of those that are shorter than the
    longest. The n-grams are sorted by their context's state and their last word, so that one binary
    search in `keys` = state·vocab_size + word finds many of them at once.

    Args:
        arpa: the file.

    Attributes:
        ids: word -> number.
        unknown: number of words that the file does not have.
        has_unknown: whether the file states their probability, that of <unk>.
        start, end: numbers of <s> and </s>, None where the file has none.

    Raises:
        UserError: an n-gram is listed twice, or its context is not.
    """

    def __init__(self, arpa: Arpa):
        self.ids = {word: i for i, word in enumerate(arpa.words)}
        orders = list(arpa.orders)
        self.has_unknown = UNKNOWN in self.ids
        if not self.has_unknown:
            self.ids[UNKNOWN] = len(self.ids)
            orders[0] = _with_unknown(orders[0], self.ids[UNKNOWN])
        self.unknown = self.ids[UNKNOWN]
        self.start = self.ids.get(START)
        self.end = self.ids.get(END)
        self.vocab_size = len(self.ids)
        self.n_orders = len(orders)
        arrays = _Arrays(arpa.file, orders, self.vocab_size)
        self.keys = torch.from_numpy(arrays.keys)
        self.log_probs = torch.from_numpy(arrays.log_probs)
        self.targets = torch.from_numpy(arrays.targets)
        self.backoffs = torch.from_numpy(arrays.backoffs)
        self.shorter = torch.from_numpy(arrays.shorter)

    def first_state(self) -> int:
        """Returns the state at the beginning of a text."""
        if self.start is None:
            return 0
        _, state = self.look_up(torch.zeros((), dtype=torch.long), torch.tensor(self.start))
        return int(state)

    def look_up(
        self, states: Int[Tensor, "..."], words: Int[Tensor, "..."]
    ) -> tuple[Float64[Tensor, "..."], Int[Tensor, "..."]]:
        """Returns ln p(word | state), and the state after the word."""
        states, words = torch.broadcast_tensors(states, words)
        shape = states.shape
        states = states.flatten()
        words = words.flatten()
        total = torch.zeros(len(states), dtype=torch.float64)
        # each pass shortens the contexts after which the word is not listed
        for _ in range(self.n_orders):
            keys = states * self.vocab_size + words
            index = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
            is_listed = self.keys[index] == keys
            total = total + torch.where(is_listed, 0.0, self.backoffs[states])
            states = torch.where(is_listed, states, self.shorter[states])
        return (total + self.log_probs[index]).view(shape), self.targets[index].view(shape)


def _with_unknown(unigrams: NGrams, unknown: int) -> NGrams:
    """Returns the unigrams with one for unknown words."""
    return NGrams(
        words=np.concatenate([unigrams.words, [[unknown]]]),
        log_probs=np.append(unigrams.log_probs, UNKNOWN_LOG10),
        backoffs=np.append(unigrams.backoffs, 0.0),
        lines=np.append(unigrams.lines, 0),
    )


class _Arrays:
    """The sorted arrays of `NGramModel`; probabilities and backoffs are natural logarithms."""

    def __init__(self, file: str, orders: list[NGrams], vocab_size: int):
        self.file = file
        self.vocab_size = vocab_size
        self.keys = np.empty(0, np.int64)
        sorted_orders = []
        for ngrams in orders:
            sorted_orders.append(self._append(ngrams))
        log_probs = np.concatenate([ngrams.log_probs for ngrams in sorted_orders])
        self.log_probs = log_probs * math.log(10)
        # n-grams that are contexts of longer ones have a state; 0 is that of the empty context
        n_contexts = sum(len(ngrams.words) for ngrams in sorted_orders[:-1])
        backoffs = [ngrams.backoffs for ngrams in sorted_orders[:-1]]
        self.backoffs = np.concatenate([[0.0], *backoffs]) * math.log(10)
        self.targets = np.arange(1, len(self.keys) + 1)
        shorter = [np.zeros(1, np.int64)]
        for ngrams in sorted_orders:
            shorter.append(self._longest_suffix(ngrams.words, n_contexts))
        longest_suffix = np.concatenate(shorter)
        self.shorter = longest_suffix[: n_contexts + 1]
        self.targets[n_contexts:] = longest_suffix[n_contexts + 1 :]

    def _append(self, ngrams: NGrams) -> NGrams:
        """Appends the keys of the n-grams of the next order, and returns them sorted by key."""
        states = self._state_of(ngrams.words[:, :-1])
        if (states < 0).any():
            # named in the order of the file
            number = int(ngrams.lines[states < 0].min())
            raise UserError(
                f"{self.file}, line {number:,}: its words but the last are no n-gram of the "
                "section before"
            )
        keys = states * self.vocab_size + ngrams.words[:, -1]
        order = keys.argsort(kind="stable")
        keys = keys[order]
        repeated = np.flatnonzero(keys[1:] == keys[:-1]) + 1
        if len(repeated):
            number = int(ngrams.lines[order][repeated].min())
            raise UserError(f"{self.file}, line {number:,}: the n-gram is listed twice")
        # contexts of longer n-grams have higher states, so all keys are sorted
        self.keys = np.concatenate([self.keys, keys])
        return NGrams(
            words=ngrams.words[order],
            log_probs=ngrams.log_probs[order],
            backoffs=ngrams.backoffs[order],
            lines=ngrams.lines[order],
        )

    def _state_of(self, words: Int64[np.ndarray, "m n"]) -> Int64[np.ndarray, " m"]:
        """Returns the state of each n-gram, -1 where it is not listed."""
        states = np.zeros(len(words), np.int64)
        for column in words.T:
            keys = states * self.vocab_size + column
            index = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            is_listed = (states >= 0) & (self.keys[index] == keys)
            states = np.where(is_listed, index + 1, -1)
        return states

    def _longest_suffix(
        self, words: Int64[np.ndarray, "m n"], n_contexts: int
    ) -> Int64[np.ndarray, " m"]:
        """Returns the state of the longest listed suffix of each n-gram, itself excluded."""
        states = np.zeros(len(words), np.int64)
        # longer suffixes replace shorter ones
        for start in range(words.shape[1] - 1, 0, -1):
            longer = self._state_of(words[:, start:])
            states = np.where((longer >= 0) & (longer <= n_contexts), longer, states)
        return states
