"""Prefix beam search gives the sums over alignments, whatever the batch and its padding."""

import math
from itertools import groupby, product

import pytest
import torch

from famx.data._tokenizers import train_tokenizer
from famx.decode._fusion import Fusion
from famx.decode._prefix_beam import prefix_beam_search
from famx.registry import build

UNLIMITED = 4096  # more prefixes than the tiny cases have


def sums_over_alignments(scores):
    """Returns ln p of each text of a (t, v) table of scores, by listing all alignments."""
    log_probs = scores.double().log_softmax(-1)
    sums = {}
    for path in product(range(scores.shape[1]), repeat=len(scores)):
        text = tuple(token for token, _ in groupby(path) if token)
        value = log_probs[torch.arange(len(path)), list(path)].sum()
        sums[text] = torch.logaddexp(sums[text], value) if text in sums else value
    return {text: float(value) for text, value in sums.items()}


def log_probs_of(hypotheses, row=0):
    """Returns ln p of each text of a beam."""
    texts = {}
    rows = zip(hypotheses.tokens[row].tolist(), hypotheses.log_probs[row].tolist(), strict=True)
    for tokens, value in rows:
        if value > float("-inf"):
            text = tuple(token for token in tokens if token >= 0)
            assert text not in texts
            texts[text] = value
    return texts


@pytest.mark.parametrize(("frames", "tokens"), [(1, 3), (5, 3), (4, 4), (7, 2)])
def test_unlimited_beam_gives_every_text_its_sum_over_alignments(frames, tokens):
    for _ in range(5):
        scores = 2 * torch.randn(1, frames, tokens)
        hypotheses = prefix_beam_search(scores, torch.tensor([frames]), UNLIMITED)
        expected = sums_over_alignments(scores[0])
        reached = log_probs_of(hypotheses)
        assert reached == pytest.approx(expected, rel=1e-9)
        assert hypotheses.best()[0] == list(max(expected, key=expected.get))


@pytest.mark.parametrize("beam", [1, 2, 3, 5, 8])
def test_no_beam_exceeds_the_sum_over_alignments_nor_the_score_of_an_unlimited_one(beam):
    for _ in range(20):
        scores = 2 * torch.randn(1, 6, 3)
        lengths = torch.tensor([6])
        expected = sums_over_alignments(scores[0])
        limited = prefix_beam_search(scores, lengths, beam)
        for text, value in log_probs_of(limited).items():
            assert value <= expected[text] + 1e-9
        unlimited = prefix_beam_search(scores, lengths, UNLIMITED)
        assert limited.scores[0, 0] <= unlimited.scores[0, 0] + 1e-9


def test_larger_beam_may_end_with_a_lower_sum():
    # the exception to the law above, between beams that prefixes leave: a prefix that the larger
    # one adds replaces another one, whose sum would grow later
    is_lower = False
    for _ in range(300):
        scores = 2 * torch.randn(1, 6, 3)
        small = prefix_beam_search(scores, torch.tensor([6]), 2)
        large = prefix_beam_search(scores, torch.tensor([6]), 3)
        is_lower |= bool(large.scores[0, 0] < small.scores[0, 0] - 1e-3)
    assert is_lower


def test_few_candidates_of_a_frame_are_enough():
    # all tokens of a frame, instead of one more than the beam
    scores = 2 * torch.randn(4, 12, 30)
    lengths = torch.tensor([12, 12, 9, 5])
    few = prefix_beam_search(scores, lengths, 4)

    class AllTokens(ConstantModel):
        n_candidates = 30

    every = prefix_beam_search(scores, lengths, 4, fusion=AllTokens(30))
    assert few.best() == every.best()
    torch.testing.assert_close(few.log_probs, every.log_probs)


def test_prefix_that_leaves_the_beam_and_returns_is_one_prefix():
    # many frames and a small beam: prefixes are dropped and created again
    for _ in range(50):
        scores = torch.randn(1, 12, 3)
        log_probs_of(prefix_beam_search(scores, torch.tensor([12]), 3))


def test_text_and_score_depend_on_neither_batch_nor_padding():
    lengths = torch.tensor([30, 17, 1, 24])
    scores = 3 * torch.randn(4, 30, 12)
    scores[..., 0] += 3
    together = prefix_beam_search(scores, lengths, 5, 0.9)
    changed = scores.clone()
    for i, length in enumerate(lengths):
        changed[i, length:] = 100 * torch.randn(30 - length, 12)
    padded = prefix_beam_search(torch.cat((changed, changed), 1), lengths, 5, 0.9)
    for i, length in enumerate(lengths):
        alone = prefix_beam_search(scores[i : i + 1, :length], lengths[i : i + 1], 5, 0.9)
        for other in (together, padded):
            assert log_probs_of(other, i) == pytest.approx(log_probs_of(alone), rel=1e-12)
            assert other.best()[i] == alone.best()[0]


def test_skipped_blanks_lose_the_probability_of_other_tokens_alone():
    for _ in range(10):
        scores = 2 * torch.randn(1, 7, 3)
        scores[0, [1, 2, 5], 0] += 8
        expected = sums_over_alignments(scores[0])
        reached = log_probs_of(prefix_beam_search(scores, torch.tensor([7]), UNLIMITED, 0.9))
        blank = scores[0].double().softmax(-1)[:, 0]
        missing = float(1 - blank[blank > 0.9].prod())
        lost = 0.0
        for text, value in expected.items():
            probability = math.exp(value)
            remaining = math.exp(reached.get(text, float("-inf")))
            assert remaining <= probability + 1e-12
            lost += probability - remaining
        assert 0 < lost == pytest.approx(missing)


def test_tokens_repeat_across_skipped_blanks():
    tokenizer = train_tokenizer(["ab"], ["<blank>"])
    path = torch.tensor([[1, 0, 0, 1, 2, 0], [0, 0, 0, 0, 0, 0]])
    scores = 20.0 * torch.nn.functional.one_hot(path, 3)
    decoder = build("decode", {"name": "ctc_beam"}, tokenizer=tokenizer, load_run=str)
    assert decoder.decode_scores(scores, torch.tensor([6, 6])) == ["aab", ""]


def test_sum_over_alignments_beats_the_best_alignment():
    # the blank is the best path, "a" has more probability in all
    scores = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()[None]
    lengths = torch.tensor([2])
    tokenizer = train_tokenizer(["a"], ["<blank>"])
    texts = {}
    for name in ("ctc_greedy", "ctc_beam"):
        decoder = build("decode", {"name": name}, tokenizer=tokenizer, load_run=str)
        texts[name] = decoder.decode_scores(scores, lengths)
    assert texts == {"ctc_greedy": [""], "ctc_beam": ["a"]}


class ConstantModel(Fusion):
    """A language model that adds nothing."""

    def __init__(self, n_tokens):
        self.n_tokens = n_tokens

    def start(self, n_rows):
        return {"nothing": torch.zeros(n_rows, 1)}

    def next_scores(self, state):
        return torch.zeros(*state["nothing"].shape, self.n_tokens, dtype=torch.float64)

    def extend(self, state, tokens, is_extended):
        return state

    def end_scores(self, state):
        return torch.zeros(state["nothing"].shape, dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.9, 1.0])
def test_signals_without_frames_have_the_empty_text(threshold):
    hypotheses = prefix_beam_search(torch.randn(2, 0, 5), torch.tensor([0, 0]), 3, threshold)
    assert hypotheses.best() == [[], []]
    assert hypotheses.log_probs[:, 0].tolist() == [0.0, 0.0]
    scores = torch.randn(2, 4, 5)
    mixed = prefix_beam_search(scores, torch.tensor([0, 4]), 3, threshold)
    alone = prefix_beam_search(scores[1:], torch.tensor([4]), 3, threshold)
    assert mixed.best() == [[], *alone.best()]
