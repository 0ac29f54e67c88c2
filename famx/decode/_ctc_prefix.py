"""CTC's probability of all texts with a prefix, for the hypotheses of a beam (Watanabe 2017)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from famx.nn.encoding import BLANK_ID, END_ID, Encoding
from famx.nn.masks import length_mask


class Alignments(NamedTuple):
    """Log-probabilities of the alignments of a prefix with the first t frames, t from 0 to s.

    Args:
        token: sum over the alignments that end with the last token of the prefix.
        blank: sum over those that end with a blank.
    """

    token: Float[Tensor, "b k s1"]
    blank: Float[Tensor, "b k s1"]


class CTCPrefixScorer:
    """`log p(g...) = log sum p(text | signal)` over the texts that begin with a prefix g.

    The alignments of g with t frames have the probability `n_t` if they end with its last token and
    `b_t` if they end with a blank. With `phi_t = b_t + n_t`, without `n_t` if v repeats the last
    token of g,

        p(gv...) = sum_t phi_(t-1) p_t(v),  p(g) = n_s + b_s
        n'_t = (n'_(t-1) + phi_(t-1)) p_t(v),  b'_t = (b'_(t-1) + n'_(t-1)) p_t(blank)

    where n' and b' are those of gv. Sums over time are matrix products and cumulative sums, in 64
    bits.

    Args:
        encoding: frames with scores of CTC.
    """

    def __init__(self, encoding: Encoding):
        self.lengths = encoding.lengths
        log_probs = encoding.scores.double().log_softmax(-1)
        # padding emits nothing
        is_real = length_mask(encoding.lengths, log_probs.shape[1])
        self.probs = log_probs.exp() * is_real[..., None]
        # log-probability of the same token in all of the first t frames
        self.repetitions = pad(log_probs.cumsum(1), (0, 0, 1, 0)).mT

    def start(self, beam: int) -> Alignments:
        """Returns the alignments of empty prefixes, `beam` of them for each row."""
        blank = self.repetitions[:, BLANK_ID, None].expand(-1, beam, -1)
        return Alignments(torch.full_like(blank, -torch.inf), blank)

    def extension_scores(
        self, alignments: Alignments, last: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k v"]:
        """Returns the log-probability of each prefix with one more token; -inf for the blank.

        The score of the end of the text is `log p(g)`.

        Args:
            last: last token of each prefix; the end for an empty one.
        """
        scores = self._emission_scores(torch.logaddexp(*alignments))
        # a token that repeats the last one, after a blank
        index = last[..., None]
        repeated = self._emission_scores(alignments.blank).gather(-1, index)
        scores = scores.scatter(-1, index, repeated)
        scores[..., BLANK_ID] = -torch.inf
        # all frames
        at = self.lengths[:, None, None].expand(*last.shape, 1)
        complete = torch.logaddexp(alignments.token.gather(-1, at), alignments.blank.gather(-1, at))
        scores[..., END_ID] = complete[..., 0]
        return scores

    def extend(
        self, alignments: Alignments, last: Int[Tensor, "b k"], token: Int[Tensor, "b k"]
    ) -> Alignments:
        """Returns the alignments of each prefix with one more token, see `extension_scores`."""
        repeats = (token == last)[..., None]
        phi = torch.where(repeats, alignments.blank, torch.logaddexp(*alignments))
        size = self.repetitions.shape[-1]
        of_token = self.repetitions.gather(1, token[..., None].expand(-1, -1, size))
        with_token = _emit(phi, of_token)
        return Alignments(with_token, _emit(with_token, self.repetitions[:, BLANK_ID, None]))

    def _emission_scores(self, phi: Float[Tensor, "b k s1"]) -> Float[Tensor, "b k v"]:
        """Returns `log sum_t phi_(t-1) p_t(v)`, of phi as logarithms."""
        phi = phi[..., :-1]
        # a prefix that has no alignment has no largest one
        largest = phi.amax(-1, keepdim=True).clamp(min=torch.finfo(phi.dtype).min)
        return ((phi - largest).exp() @ self.probs).log() + largest


def _emit(
    phi: Float[Tensor, "b k s1"], repetitions: Float[Tensor, "b _ s1"]
) -> Float[Tensor, "b k s1"]:
    """Returns x with `x_t = (x_(t-1) + phi_(t-1)) p_t`, all as logarithms.

    Divided by the products of p, the recursion is a cumulative sum.

    Args:
        repetitions: logarithms of the products of p.
    """
    total = (phi - repetitions)[..., :-1].logcumsumexp(-1) + repetitions[..., 1:]
    return pad(total, (1, 0), value=-torch.inf)
