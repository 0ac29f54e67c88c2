"""Shallow fusion with a language model of famx (arXiv:1503.03535)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.decode._fusion import Fusion, State
from famx.decode._surfaces import surfaces
from famx.nn.encoding import BLANK_ID
from famx.notation import UserError

BOUNDARIES = ("\n", " ")  # the first of them that the language model has begins and ends a text


class LanguageModelRun(NamedTuple):
    """A trained language model.

    Args:
        folder: folder of the run, for messages.
        model: scores each next token.
        tokenizer: its tokens.
        device: device of the model.
        context: number of tokens that it was trained on at once.
    """

    folder: str
    model: nn.Module
    tokenizer: Tokenizer
    device: torch.device
    context: int


LoadRun = Callable[[str], LanguageModelRun]


class RunFusion(Fusion):
    """Adds lm_weight ln p(token | tokens before) + length_bonus for each token.

    A token of the decoder must be one token of the language model. A text begins, and ends, with a
    newline, or with a space where the language model has no newline.

    Only prefixes that a frame has extended pass through the model, those of all rows in one batch.
    Their lengths differ, so they share no decode state: each pass has all their visible tokens.

    Args:
        run: the language model.
        tokenizer: tokens of the decoder.
        lm_weight: factor of ln p(text).
        length_bonus: added for each token.

    Raises:
        UserError: a token is not one token of the language model.
    """

    def __init__(
        self, run: LanguageModelRun, tokenizer: Tokenizer, lm_weight: float, length_bonus: float
    ):
        self.run = run
        self.lm_weight = lm_weight
        self.length_bonus = length_bonus
        self.ids = torch.tensor(_token_ids(run, surfaces(tokenizer)))
        self.boundary = _boundary(run)

    def start(self, n_rows: int) -> State:
        tokens = torch.full((n_rows, 1, 1), self.boundary or 0)
        lengths = torch.ones(n_rows, 1, dtype=torch.long)
        scores, end = self._score(tokens[:, 0], lengths[:, 0])
        return {
            "tokens": tokens,
            "length": lengths,
            "scores": scores[:, None],
            "end": end[:, None],
        }

    @torch.inference_mode()
    def _score(
        self, tokens: Int[Tensor, "n t"], lengths: Int[Tensor, " n"]
    ) -> tuple[Float64[Tensor, "n v"], Float64[Tensor, " n"]]:
        """Returns what each token of the decoder adds after these tokens, and the end of a text."""
        # no token before the last one depends on the padding after it
        scores, _ = self.run.model(tokens.to(self.run.device))
        last = scores.cpu()[torch.arange(len(tokens)), lengths - 1]
        log_probs = self.lm_weight * last.double().log_softmax(-1)
        end = torch.zeros(len(tokens), dtype=torch.float64)
        if self.boundary is not None:
            end = log_probs[:, self.boundary]
        return log_probs[:, self.ids] + self.length_bonus, end

    def next_scores(self, state: State) -> Float64[Tensor, "b k v"]:
        return state["scores"]

    def extend(
        self, state: State, tokens: Int[Tensor, "b k"], is_extended: Bool[Tensor, "b k"]
    ) -> State:
        if not bool(is_extended.any()):
            return state
        # the oldest token leaves a full context
        sequences = state["tokens"]
        lengths = state["length"]
        is_full = is_extended & (lengths == self.run.context)
        if bool(is_full.any()):
            sequences = torch.where(is_full[..., None], sequences.roll(-1, 2), sequences)
            lengths = lengths - is_full.long()
        # the new token follows the others; twice the positions, so that few copies are made
        if int(lengths.max()) == sequences.shape[2]:
            sequences = pad(sequences, (0, sequences.shape[2]))
        places = (*is_extended.nonzero(as_tuple=True), lengths[is_extended])
        sequences = sequences.index_put(places, self.ids[tokens[is_extended]])
        lengths = lengths + is_extended.long()
        # scores of the extended prefixes
        longest = int(lengths[is_extended].max())
        scores, end = self._score(sequences[is_extended][:, :longest], lengths[is_extended])
        return {
            "tokens": sequences,
            "length": lengths,
            "scores": state["scores"].index_put((is_extended,), scores),
            "end": state["end"].index_put((is_extended,), end),
        }

    def end_scores(self, state: State) -> Float64[Tensor, "b k"]:
        return state["end"]


def _token_ids(run: LanguageModelRun, texts: list[str]) -> list[int]:
    """Returns the token of the language model for each token of the decoder; 0 for the blank."""
    ids = []
    for token, text in enumerate(texts):
        encoded = run.tokenizer.encode(text).ids
        if token == BLANK_ID:
            encoded = [0]
        if len(encoded) != 1:
            raise UserError(
                f"decode.lm={run.folder} has no token {text!r}; its tokens must be those of this "
                "run, such as the characters of task.vocab_size=0"
            )
        ids += encoded
    return ids


def _boundary(run: LanguageModelRun) -> int | None:
    """Returns the token that begins and ends a text, None if there is none."""
    for text in BOUNDARIES:
        encoded = run.tokenizer.encode(text).ids
        if len(encoded) == 1:
            return encoded[0]
    return None
