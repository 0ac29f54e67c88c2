"""CTC's probabilities of prefixes equal sums over all alignments."""

from itertools import product

import pytest
import torch

from famx.decode._ctc_prefix import CTCPrefixScorer
from famx.nn.encoding import END_ID as END
from famx.nn.encoding import Encoding


def sum_over_alignments(log_probs, prefix, is_complete):
    """Adds up all paths whose text is `prefix`, or begins with it."""
    total = 0.0
    n_frames, vocab_size = log_probs.shape
    for path in product(range(vocab_size), repeat=n_frames):
        text = [v for t, v in enumerate(path) if v and (t == 0 or v != path[t - 1])]
        if text == prefix if is_complete else text[: len(prefix)] == prefix:
            total += float(sum(log_probs[t, v] for t, v in enumerate(path)).exp())
    return total


@pytest.mark.parametrize("prefix", [[], [2], [2, 2], [2, 3], [3, 2, 3]])
def test_prefix_scores_of_ctc_are_sums_over_all_alignments(prefix):
    scores = torch.randn(2, 5, 4)
    lengths = torch.tensor([5, 4])
    scorer = CTCPrefixScorer(Encoding(torch.zeros(2, 5, 1), lengths, scores, lengths))
    alignments = scorer.start(1)
    last = torch.full((2, 1), END)
    for token in prefix:
        alignments = scorer.extend(alignments, last, torch.full((2, 1), token))
        last = torch.full((2, 1), token)
    extensions = scorer.extension_scores(alignments, last)[:, 0].exp()
    for row, length in enumerate((5, 4)):
        log_probs = scores[row, :length].double().log_softmax(-1)
        assert extensions[row, 0] == 0
        complete = sum_over_alignments(log_probs, prefix, is_complete=True)
        assert float(extensions[row, END]) == pytest.approx(complete)
        for token in (2, 3):
            total = sum_over_alignments(log_probs, [*prefix, token], is_complete=False)
            assert float(extensions[row, token]) == pytest.approx(total)


def test_prefix_scores_of_long_audio_are_finite_and_fall_with_each_token():
    scores = 20 * torch.randn(1, 2000, 30)
    lengths = torch.tensor([2000])
    scorer = CTCPrefixScorer(Encoding(torch.zeros(1, 2000, 1), lengths, scores, lengths))
    alignments = scorer.start(1)
    last = torch.full((1, 1), END)
    score = 0.0
    for token in (5, 5, 7, 9):
        extended = float(scorer.extension_scores(alignments, last)[0, 0, token])
        assert -1e4 < extended <= score + 1e-9
        alignments = scorer.extend(alignments, last, torch.full((1, 1), token))
        last = torch.full((1, 1), token)
        score = extended
    assert torch.isfinite(torch.logaddexp(*alignments)[..., 5:]).all()
