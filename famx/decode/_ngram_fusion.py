"""N-grams of words or of characters, added to the score of a prefix of tokens."""

import torch
from jaxtyping import Bool, Float64, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import pad

from famx.decode._arpa import read_arpa
from famx.decode._fusion import Fusion, State
from famx.decode._ngram import NGramModel
from famx.decode._surfaces import surfaces
from famx.notation import UserError

SPACES = ("<space>", "\N{LOWER ONE EIGHTH BLOCK}")  # how a file of characters names the space
# 64-bit hashes of words, modulo 2^64: hash(word + character) = MULTIPLIER hash(word) + character
MULTIPLIER = 6364136223846793005
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
    """

    n_candidates = 0

    def _prepare(self, texts: list[str]) -> None:
        self.begins = torch.tensor([text.startswith(" ") for text in texts])
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

    def start(self, n_rows: int) -> State:
        states = self._first_states(n_rows)
        return self._with_word(states, torch.full_like(states, NO_WORD))

    def _with_word(self, states: Int[Tensor, "b k"], word: Int[Tensor, "b k"]) -> State:
        """Returns the state of prefixes, with the score of the last word if it ends here."""
        index = torch.searchsorted(self.known_hashes, word).clamp(max=len(self.known_hashes) - 1)
        is_known = self.known_hashes[index] == word
        ids = torch.where(is_known, self.known_ids[index], self.model.unknown)
        log_probs, after = self.model.look_up(states, ids)
        is_empty = word == NO_WORD
        score = self.lm_weight * log_probs + self.length_bonus
        return {
            "state": states,
            "word": word,
            "score": score.masked_fill(is_empty, 0.0),
            "after": torch.where(is_empty, states, after),
        }

    def next_scores(self, state: State) -> Float64[Tensor, "b k v"]:
        return state["score"][..., None] * self.begins

    def extend(
        self, state: State, tokens: Int[Tensor, "b k"], is_extended: Bool[Tensor, "b k"]
    ) -> State:
        begins = self.begins[tokens] & is_extended
        states = torch.where(begins, state["after"], state["state"])
        word = state["word"].masked_fill(begins, NO_WORD)
        longer = self.factors[tokens] * word + self.hashes[tokens]
        return self._with_word(states, torch.where(is_extended, longer, word))

    def end_scores(self, state: State) -> Float64[Tensor, "b k"]:
        return state["score"] + self._end(state["after"])


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


def _hash(text: str) -> int:
    """Returns a hash of a text modulo 2^64; that of the empty text is `NO_WORD`."""
    value = 0
    for character in text:
        value = (MULTIPLIER * value + ord(character)) % 2**64
    return value


def _signed(value: int) -> int:
    """Returns the signed 64-bit integer with the bits of an unsigned one."""
    return value - 2**64 if value >= 2**63 else value
