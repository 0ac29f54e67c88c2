"""N-grams of words or of characters, added to the score of a prefix of tokens."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float64, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import pad

from famx.decode._arpa import read_arpa
from famx.decode._fusion import Fusion, State
from famx.decode._ngram import UNKNOWN_LOG10, NGramModel
from famx.decode._surfaces import surfaces
from famx.notation import UserError

SPACES = ("<space>", "\N{LOWER ONE EIGHTH BLOCK}")  # how a file of characters names the space
# 64-bit hashes of words, modulo 2^64: hash(word + character) = MULTIPLIER hash(word) + character
MULTIPLIER = 6364136223846793005
# of each character of a word outside the file, where the file has no <unk>
CHARACTER_LOG10 = -3.0
TABLE_BYTES = 2**28  # of the table of scores of characters, which is emptied beyond them
NO_WORD = 0  # hash of the empty word


def load_ngrams(
    file: str, tokenizer: Tokenizer, lm_weight: float, length_bonus: float
) -> "NGramFusion":
    """Reads an ARPA file; it is of characters if `<space>` or `▁` is one of its unigrams.

    Raises:
        UserError: the file cannot be used, or none of its words can be written with the tokens.
    """
    model = NGramModel(read_arpa(file))
    texts = surfaces(tokenizer)
    _check_characters(file, model, texts)
    is_of_characters = any(space in model.ids for space in SPACES)
    part = CharacterNGrams if is_of_characters else WordNGrams
    return part(model, texts, lm_weight, length_bonus)


def _check_characters(file: str, model: NGramModel, texts: list[str]) -> None:
    """Raises a UserError if no word of the file consists of characters of the tokens."""
    known = set().union(*texts)
    words = [word for word in model.ids if not (word.startswith("<") and word.endswith(">"))]
    if not any(set(word) <= known for word in words):
        raise UserError(
            f"decode.lm={file}: none of its {len(words):,} words consists of characters of the "
            f"run, which are {''.join(sorted(known))!r}; words are compared as they are written, "
            "upper and lower case too"
        )


class NGramFusion(Fusion):
    """Shared by both kinds of n-grams.

    Args:
        model: the n-grams.
        texts: text of each token, with a space where it begins a word.
        lm_weight: factor of ln p(text).
        length_bonus: added for each word or character.
    """

    def __init__(
        self, model: NGramModel, texts: list[str], lm_weight: float, length_bonus: float
    ) -> None:
        self.model = model
        self.lm_weight = lm_weight
        self.length_bonus = length_bonus
        self.first_state = model.first_state()
        self._prepare(texts)

    def _prepare(self, texts: list[str]) -> None:
        """Makes tables of the tokens."""
        raise NotImplementedError

    def _first_states(self, n_rows: int) -> Int[Tensor, "b 1"]:
        return torch.full((n_rows, 1), self.first_state, dtype=torch.long)

    def _end(self, states: Int[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """Returns the weighted ln p of the end of the text."""
        if self.model.end is None:
            return torch.zeros(states.shape, dtype=torch.float64)
        log_probs, _ = self.model.look_up(states, torch.tensor(self.model.end))
        return self.lm_weight * log_probs


class WordNGrams(NGramFusion):
    """Scores a word when the next one begins, and the last one at the end of the text.

    A word is known by the hash of its characters, however they are cut into tokens. The state of a
    prefix is that of its complete words, and the hash of its last word with the score of it.

    A word that the file does not have counts as its <unk>. In a file without <unk>, each character
    of the word has the log10 probability `CHARACTER_LOG10`, so that joining two words to one gains
    nothing. It is added as soon as no known word begins so: the search would otherwise prefer words
    that do not end.
    """

    n_candidates = 0

    def _prepare(self, texts: list[str]) -> None:
        self.begins = torch.tensor([text.startswith(" ") for text in texts])
        self.sizes = torch.tensor([len(text.lstrip(" ")) for text in texts])
        # hash(word + token) = factor[token] hash(word) + hash[token]
        hashes = [_hash(text.lstrip(" ")) for text in texts]
        self.hashes = torch.tensor([_signed(value) for value in hashes])
        factors = [pow(MULTIPLIER, len(text.lstrip(" ")), 2**64) for text in texts]
        self.factors = torch.tensor([_signed(value) for value in factors])
        # known words by hash
        known = [(_signed(_hash(word)), i) for word, i in self.model.ids.items()]
        known.sort()
        self.known_hashes = torch.tensor([value for value, _ in known])
        self.known_ids = torch.tensor([i for _, i in known])
        # of an unknown word: what replaces the probability of <unk>
        self.per_character = 0.0
        self.beginnings = torch.empty(0, dtype=torch.long)
        if not self.model.has_unknown:
            self.per_character = CHARACTER_LOG10 * math.log(10)
            self.beginnings = torch.tensor(sorted(_hashes_of_beginnings(self.model.ids)))

    def start(self, n_rows: int) -> State:
        states = self._first_states(n_rows)
        nothing = torch.zeros(states.shape, dtype=torch.float64)
        return self._with_word(states, torch.full_like(states, NO_WORD), states * 0, nothing)

    def _with_word(
        self,
        states: Int[Tensor, "b k"],
        word: Int[Tensor, "b k"],
        size: Int[Tensor, "b k"],
        charged: Float64[Tensor, "b k"],
    ) -> State:
        """Returns the state of prefixes, with the score of the last word if it ends here.

        Args:
            states: states of the complete words.
            word: hash of the last word.
            size: characters of the last word.
            charged: what was added for the last word before it ends.
        """
        index, is_known = _find(self.known_hashes, word)
        ids = torch.where(is_known, self.known_ids[index], self.model.unknown)
        log_probs, after = self.model.look_up(states, ids)
        if not self.model.has_unknown:
            spelled = self.per_character * size - UNKNOWN_LOG10 * math.log(10)
            log_probs = log_probs + spelled.masked_fill(is_known, 0.0)
        is_empty = word == NO_WORD
        score = self.lm_weight * log_probs + self.length_bonus
        return {
            "state": states,
            "word": word,
            "size": size,
            "charged": charged,
            "due": self._due(word, size),
            "score": score.masked_fill(is_empty, 0.0),
            "after": torch.where(is_empty, states, after),
        }

    def _due(self, word: Int[Tensor, "b k"], size: Int[Tensor, "b k"]) -> Float64[Tensor, "b k"]:
        """Returns what is added for a word before it ends, since it can be no known one."""
        due = self.lm_weight * self.per_character * size.double()
        if self.model.has_unknown:
            return due
        _, may_become_known = _find(self.beginnings, word)
        return due.masked_fill(may_become_known, 0.0)

    def next_scores(self, state: State) -> Float64[Tensor, "b k v"]:
        added = torch.where(self.begins, state["score"][..., None], state["due"][..., None])
        return added - state["charged"][..., None]

    def extend(
        self, state: State, tokens: Int[Tensor, "b k"], is_extended: Bool[Tensor, "b k"]
    ) -> State:
        begins = self.begins[tokens] & is_extended
        states = torch.where(begins, state["after"], state["state"])
        word = state["word"].masked_fill(begins, NO_WORD)
        size = state["size"].masked_fill(begins, 0)
        charged = torch.where(is_extended, state["due"], state["charged"])
        longer = self.factors[tokens] * word + self.hashes[tokens]
        return self._with_word(
            states,
            torch.where(is_extended, longer, word),
            torch.where(is_extended, size + self.sizes[tokens], size),
            charged.masked_fill(begins, 0.0),
        )

    def end_scores(self, state: State) -> Float64[Tensor, "b k"]:
        return state["score"] - state["charged"] + self._end(state["after"])


class CharacterNGrams(NGramFusion):
    """Scores every character of a token; a space at the beginning of a text does not count.

    The scores of all tokens after a state of the n-grams are a row of a table, which is filled as
    states are reached; its row 0 is that of the beginning of a text.
    """

    def _prepare(self, texts: list[str]) -> None:
        ids = self.model.ids
        space = next(ids[name] for name in SPACES if name in ids)
        size = max(map(len, texts))
        # the characters of each token, -1 after the last one
        self.characters = torch.full((len(texts), size), -1)
        for token, text in enumerate(texts):
            for i, character in enumerate(text):
                known = ids.get(character, self.model.unknown)
                self.characters[token, i] = space if character == " " else known
        # at the beginning of a text, tokens that begin with a space
        self.first_characters = self.characters.clone()
        self.first_characters[self.characters[:, 0] == space, 0] = -1
        self.max_rows = max(1024, TABLE_BYTES // (16 * len(texts)))
        self._clear()

    def _clear(self) -> None:
        """Empties the table, except for its first row."""
        state = torch.tensor([self.first_state])
        self.scores, self.after = self._score(state, self.first_characters)
        self.n_rows = 1
        self.row_of_state = torch.full((len(self.model.backoffs),), -1)

    def start(self, n_rows: int) -> State:
        # rows are never removed within a search, whose prefixes refer to them
        if self.n_rows > self.max_rows:
            self._clear()
        return {
            "state": self._first_states(n_rows),
            "row": torch.zeros(n_rows, 1, dtype=torch.long),
        }

    def _score(
        self, states: Int[Tensor, " n"], characters: Int[Tensor, "v c"]
    ) -> tuple[Float64[Tensor, "n v"], Int[Tensor, "n v"]]:
        """Returns the score of each token after each state, and the state after it."""
        after = states[:, None].repeat(1, len(characters))
        scores = torch.zeros(after.shape, dtype=torch.float64)
        for column in characters.T:
            tokens = (column >= 0).nonzero()[:, 0]
            log_probs, after[:, tokens] = self.model.look_up(after[:, tokens], column[tokens])
            scores[:, tokens] += self.lm_weight * log_probs + self.length_bonus
        return scores, after

    def _rows(self, states: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        """Returns the rows of states, after they are added to the table."""
        missing = states[self.row_of_state[states] < 0].unique()
        if len(missing):
            end = self.n_rows + len(missing)
            if end > len(self.scores):
                # twice as many rows, so that few copies are made
                more = max(end, 2 * len(self.scores)) - len(self.scores)
                self.scores = pad(self.scores, (0, 0, 0, more))
                self.after = pad(self.after, (0, 0, 0, more))
            rows = slice(self.n_rows, end)
            self.scores[rows], self.after[rows] = self._score(missing, self.characters)
            self.row_of_state[missing] = torch.arange(self.n_rows, end)
            self.n_rows = end
        return self.row_of_state[states]

    def next_scores(self, state: State) -> Float64[Tensor, "b k v"]:
        return self.scores[state["row"]]

    def extend(
        self, state: State, tokens: Int[Tensor, "b k"], is_extended: Bool[Tensor, "b k"]
    ) -> State:
        after = self.after[state["row"], tokens]
        states = torch.where(is_extended, after, state["state"])
        return {
            "state": states,
            "row": torch.where(is_extended, self._rows(states), state["row"]),
        }

    def end_scores(self, state: State) -> Float64[Tensor, "b k"]:
        return self._end(state["state"])


def _find(
    values: Int[Tensor, " n"], x: Int[Tensor, "b k"]
) -> tuple[Int[Tensor, "b k"], Bool[Tensor, "b k"]]:
    """Returns where each x is in sorted values, or would be, and whether it is there."""
    index = torch.searchsorted(values, x).clamp(max=len(values) - 1)
    return index, values[index] == x


def _hashes_of_beginnings(words: Iterable[str]) -> set[int]:
    """Returns the hashes of all beginnings of words, whole words and the empty one too."""
    hashes = {NO_WORD}
    for word in words:
        value = 0
        for character in word:
            value = _longer(value, character)
            hashes.add(_signed(value))
    return hashes


def _longer(value: int, character: str) -> int:
    """Returns the hash of a text with one more character."""
    return (MULTIPLIER * value + ord(character)) % 2**64


def _hash(text: str) -> int:
    """Returns a hash of a text modulo 2^64; that of the empty text is `NO_WORD`."""
    value = 0
    for character in text:
        value = _longer(value, character)
    return value


def _signed(value: int) -> int:
    """Returns the signed 64-bit integer with the bits of an unsigned one."""
    return value - 2**64 if value >= 2**63 else value
