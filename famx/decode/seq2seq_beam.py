"""Joint beam search with a decoder of texts and CTC (Watanabe 2017), monotonic in its width."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from famx.decode._ctc_prefix import Alignments, CTCPrefixScorer
from famx.decode.base import TextDecoding
from famx.nn.encoding import BLANK_ID, END_ID, EncoderDecoder, Encoding
from famx.nn.state import DecodeState
from famx.registry import register


class Hypothesis(NamedTuple):
    """The best text of a signal: its tokens and its score."""

    tokens: list[int]
    score: float


class Beam(NamedTuple):
    """The hypotheses of each row after the same number of tokens.

    Args:
        texts: the tokens so far.
        last: the last token; the end before the first one.
        score: `(1 - w) log p(text | signal) + w log p_ctc(text... | signal)`; -inf for none.
        log_prob: `log p(text | signal)` of the decoder.
    """

    texts: Int[Tensor, "b k u"]
    last: Int[Tensor, "b k"]
    score: Float[Tensor, "b k"]
    log_prob: Float[Tensor, "b k"]


class Best(NamedTuple):
    """The best complete text of each row: its normalised score, its tokens and their number."""

    score: Float[Tensor, " b"]
    texts: Int[Tensor, "b max"]
    sizes: Int[Tensor, " b"]


@register
class Seq2SeqBeam(TextDecoding):
    """argmax_y ((1 - w) log p(y | signal) + w log p_ctc(y | signal)) / |y|^length_norm.

    w is `ctc_weight`, and |y| counts the tokens and the end. The search is monotonic (Lemons et al.
    2022): each slot of the beam gets the best extension of itself and the slots before it, except
    those of earlier slots. So a wider beam contains the texts of a narrower one, its score is never
    lower, and a beam of 1 without CTC is greedy decoding. A row ends when no running hypothesis can
    exceed its best complete one.

    Args:
        beam: number of hypotheses of each row.
        ctc_weight: w, from 0 to 1.
        length_norm: 0 for the sum of log-probabilities, up to 1 for their mean.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        beam: int = 8,
        ctc_weight: float = 0.3,
        length_norm: float = 0.0,
    ):
        super().__init__(tokenizer)
        if beam < 1:
            raise ValueError(f"beam={beam} must be at least 1")
        for name, value in (("ctc_weight", ctc_weight), ("length_norm", length_norm)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be from 0 to 1")
        self.beam = beam
        self.ctc_weight = ctc_weight
        self.length_norm = length_norm

    @classmethod
    def decoded_outputs(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the outputs of a model that have a weight in the score."""
        weights = {"text": 1 - options["ctc_weight"], "frames": options["ctc_weight"]}
        return tuple(output for output, weight in weights.items() if weight)

    def decode_encoding(self, model: EncoderDecoder, encoding: Encoding) -> list[str]:
        hypotheses = self.search(model, encoding)
        return [self.tokenizer.decode(hypothesis.tokens) for hypothesis in hypotheses]

    @torch.inference_mode()
    def search(self, model: EncoderDecoder, encoding: Encoding) -> list[Hypothesis]:
        """Returns the best text of each row."""
        scorer = CTCPrefixScorer(encoding) if self.ctc_weight else None
        alignments = scorer.start(self.beam) if scorer else None
        repeated = encoding.repeat(self.beam)
        state = DecodeState()
        beam = self._start(encoding)
        best = _no_text(encoding)
        for size in range(best.texts.shape[1]):
            # scores of each hypothesis with one more token
            text_scores = model.predict(beam.last.view(-1, 1), repeated, state)[:, -1]
            log_probs = text_scores.double().log_softmax(-1).unflatten(0, beam.last.shape)
            log_probs = log_probs + beam.log_prob[..., None]
            scores = (1 - self.ctc_weight) * log_probs
            if scorer and alignments:
                ctc_scores = scorer.extension_scores(alignments, beam.last)
                scores = scores + self.ctc_weight * ctc_scores
            scores[..., BLANK_ID] = -torch.inf
            # at its limit, a text can only end
            end = scores[..., END_ID].clone()
            scores = scores.masked_fill((encoding.limits <= size)[:, None, None], -torch.inf)
            scores[..., END_ID] = end
            scores = scores.masked_fill(beam.score[..., None] == -torch.inf, -torch.inf)

            # the best of them, and the texts that are complete
            parents, tokens, chosen = _choose(scores)
            texts = beam.texts.gather(1, parents[..., None].expand(-1, -1, size))
            is_last = (tokens == END_ID) | (encoding.limits <= size + 1)[:, None]
            best = self._update(best, texts, tokens, chosen.where(is_last, -torch.inf))
            running = chosen.where(~is_last, -torch.inf)
            limit = running.amax(1) / (encoding.limits + 1.0) ** self.length_norm
            running = running.masked_fill((limit <= best.score)[:, None], -torch.inf)
            if bool((running == -torch.inf).all()):
                break

            # the next beam
            state.select((parents + self.beam * _row_indices(parents)).flatten())
            if scorer and alignments:
                alignments = Alignments(
                    *(x.gather(1, parents[..., None].expand_as(x)) for x in alignments)
                )
                alignments = scorer.extend(alignments, beam.last.gather(1, parents), tokens)
            beam = Beam(
                texts=torch.cat((texts, tokens[..., None]), -1),
                last=tokens,
                score=running,
                log_prob=log_probs.flatten(1).gather(1, parents * log_probs.shape[-1] + tokens),
            )
        return _hypotheses(best)

    def _start(self, encoding: Encoding) -> Beam:
        """Returns one empty text for each row, in its first slot."""
        last = torch.full_like(encoding.lengths, END_ID)[:, None].repeat(1, self.beam)
        log_prob = torch.zeros_like(last, dtype=torch.double)
        score = log_prob.clone()
        score[:, 1:] = -torch.inf
        return Beam(last.new_zeros(*last.shape, 0), last, score, log_prob)

    def _update(
        self,
        best: Best,
        texts: Int[Tensor, "b k u"],
        tokens: Int[Tensor, "b k"],
        scores: Float[Tensor, "b k"],
    ) -> Best:
        """Returns the best complete texts after further ones.

        Args:
            texts: tokens of the texts before their last ones.
            tokens: last tokens of the texts, or their ends.
            scores: sums of the complete texts; -inf for others.
        """
        size = texts.shape[-1]
        score, slot = (scores / (size + 1) ** self.length_norm).max(1)
        is_better = score > best.score
        index = slot[:, None]
        token = tokens.gather(1, index)
        text = texts.gather(1, index[..., None].expand(-1, -1, size))[:, 0]
        text = torch.nn.functional.pad(
            torch.cat((text, token), 1), (0, best.texts.shape[1] - size - 1)
        )
        # an end is not a token of the text
        sizes = size + (token[:, 0] != END_ID).long()
        return Best(
            score=score.where(is_better, best.score),
            texts=text.where(is_better[:, None], best.texts),
            sizes=sizes.where(is_better, best.sizes),
        )


def _choose(
    scores: Float[Tensor, "b k v"],
) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Returns the parent, the token and the score of the extension that each slot takes."""
    beam = scores.shape[1]
    # no parent has more extensions than there are slots
    values, tokens = scores.topk(min(beam, scores.shape[-1]), dim=-1)
    width = values.shape[-1]
    remaining = values.flatten(1)
    chosen = []
    chosen_scores = []
    for slot in range(beam):
        # of this slot and those before it; -inf where no extension remains
        score, index = remaining[:, : (slot + 1) * width].max(1, keepdim=True)
        chosen.append(index)
        chosen_scores.append(score)
        remaining = remaining.scatter(1, index, -torch.inf)
    flat = torch.cat(chosen, 1)
    return flat // width, tokens.flatten(1).gather(1, flat), torch.cat(chosen_scores, 1)


def _row_indices(x: Int[Tensor, "b k"]) -> Int[Tensor, "b 1"]:
    return torch.arange(len(x), device=x.device)[:, None]


def _no_text(encoding: Encoding) -> Best:
    score = torch.full_like(encoding.lengths, -torch.inf, dtype=torch.double)
    texts = encoding.limits.new_zeros(len(score), max(1, int(encoding.limits.max())))
    return Best(score, texts, torch.zeros_like(encoding.lengths))


def _hypotheses(best: Best) -> list[Hypothesis]:
    scores = best.score.tolist()
    sizes = best.sizes.tolist()
    rows = best.texts.tolist()
    return [
        Hypothesis(row[:size], score) for row, size, score in zip(rows, sizes, scores, strict=True)
    ]
