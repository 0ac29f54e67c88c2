"""The text decoder of a transducer: scores of all pairs of a frame and a text (Graves 2012)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.nn.encoding import BLANK_ID, END_ID, Encoding
from famx.nn.masks import length_mask
from famx.nn.state import Cache, DecodeState

NEVER = -1e30  # score of a token that no frame emits; unlike -inf, it has a gradient, of 0


class TransducerDecoder(nn.Module):
    """z(t, u) = W tanh(A f_t + g_u), of which the softmax is p(k | t, u).

    A path begins at frame 0 before the text. At frame t after u tokens it either emits a token, or
    the blank (id 0), with which it goes on to the next frame. The blank of the last frame ends it.
    `g_u = relu(sum_i c_i * e(y_{u-i}))` depends on the last `context` tokens alone, so that the
    predictor has no other state (Ghodsi et al. 2020, "RNN-transducer with stateless prediction
    network").

    Args:
        embedding: frontend of token ids, which maps them to vectors of `d_model` channels.
        d_model: channels of a vector and of a frame.
        vocab_size: number of tokens, with the blank and the end (id 1), which no frame emits.
        context: number of tokens that a prediction depends on.
    """

    def __init__(self, embedding: nn.Module, d_model: int, vocab_size: int, context: int = 2):
        super().__init__()
        self.embedding = embedding
        self.context = context
        self.predictor = nn.Conv1d(d_model, d_model, context, groups=d_model, bias=False)
        self.of_frames = nn.Linear(d_model, d_model)
        self.score = nn.Linear(d_model, vocab_size)

    def text_scores(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t u v"]:
        """Returns z for each frame and after each token of texts that begin with id 1."""
        return self._lattice(encoding, self._predict(text))

    def forward(
        self,
        text: Int[Tensor, "b u"],
        encoding: Encoding,
        state: DecodeState | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b u v"]:
        """Returns log p(text so far, next token | signal), of which the softmax is that of a token.

        The arguments are those of `famx.nn.encoding.EncoderDecoder.predict`; padding of the text
        changes nothing before it.
        """
        cache: Cache = state.cache(self) if state is not None else {}
        # the last tokens of the chunk before this one
        n_tokens = text.shape[1]
        known = torch.cat((cache["text"], text), 1) if "text" in cache else text
        vectors = self._predict(known)[:, -n_tokens:]
        cache["text"] = known[:, max(0, known.shape[1] - self.context + 1) :]
        return score_next_tokens(self._lattice(encoding, vectors), text, encoding.lengths, cache)

    def _predict(self, text: Int[Tensor, "b u"]) -> Float[Tensor, "b u d"]:
        """Returns g after each token; tokens before the first are vectors of 0."""
        lengths = torch.full((len(text),), text.shape[1], device=text.device)
        x, _ = self.embedding(text, lengths)
        x = nn.functional.pad(x.transpose(1, 2), (self.context - 1, 0))
        return self.predictor(x).transpose(1, 2).relu()

    def _lattice(
        self, encoding: Encoding, vectors: Float[Tensor, "b u d"]
    ) -> Float[Tensor, "b t u v"]:
        frames = self.of_frames(encoding.frames)
        scores = self.score((frames[:, :, None] + vectors[:, None]).tanh())
        tokens = torch.arange(scores.shape[-1], device=scores.device)
        return scores.float().masked_fill(tokens == END_ID, NEVER)


def score_next_tokens(
    lattice: Float[Tensor, "b t u v"],
    text: Int[Tensor, "b u"],
    lengths: Int[Tensor, " b"],
    cache: Cache,
) -> Float[Tensor, "b u v"]:
    """Returns log p(text so far, next token | signal), summed over all paths through a lattice.

    With a(t, u) the probability that a path comes to frame t after u tokens,

        p(y_1..u, k) = sum_t a(t, u) p(k | t, u)        and
        p(y_1..u, end) = a(T-1, u) p(blank | T-1, u).

    Exactly one of these events follows y_1..u, so their sum is p(y_1..u), and the product of p(next
    token | text so far) over a text and its end is the probability of the text. The sums over t are
    those of the forward algorithm, one token a step and all frames at once.

    Args:
        lattice: scores before the softmax, after each token of `text`.
        text: tokens, of which the first one of all begins the text.
        lengths: frames of each row without padding.
        cache: the paths to the end of the text before `text`; none at the beginning.
    """
    log_probs = lattice.double().log_softmax(-1)
    is_frame = length_mask(lengths, lattice.shape[1])
    last_frame = (lengths - 1).clamp(min=0)[:, None]
    scores = []
    for u in range(text.shape[1]):
        # log-probabilities that the last token of the text so far is emitted at each frame
        if "paths" in cache:
            index = text[:, u, None, None].expand(-1, lattice.shape[1], 1)
            arrivals = cache["paths"].gather(2, index)[..., 0]
        else:
            arrivals = torch.full_like(log_probs[:, :, 0, 0], -torch.inf)
            arrivals[:, 0] = 0.0

        # of being at each frame: blanks lead from the frame of an arrival to all later ones
        blanks = log_probs[:, :, u, BLANK_ID]
        passed = blanks.cumsum(1) - blanks
        at_frame = passed + (arrivals - passed).logcumsumexp(1)

        # of each next token at each frame, then at any frame
        paths = at_frame[..., None] + log_probs[:, :, u]
        paths = paths.masked_fill(~is_frame[..., None], -torch.inf)
        cache["paths"] = paths
        following = paths.logsumexp(1)
        following[:, END_ID] = paths[..., BLANK_ID].gather(1, last_frame)[:, 0]
        following[:, BLANK_ID] = -torch.inf
        scores.append(following)
    return torch.stack(scores, 1)
