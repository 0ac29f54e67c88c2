"""CTC prefix beam search (Graves & Jaitly 2014; arXiv:1408.2873), of all rows and beams at once."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from famx.decode._fusion import Fusion, State
from famx.nn.encoding import BLANK_ID
from famx.nn.masks import length_mask

IMPOSSIBLE = -math.inf
# 64-bit hashes of prefixes, modulo 2^64: hash(prefix + token) = MULTIPLIER hash(prefix) + token + 1
MULTIPLIER = 6364136223846793005
NO_PREFIX = -1  # hash of a slot without a prefix
NO_PARENT = -2  # hash of the parent of the empty prefix


class Hypotheses(NamedTuple):
    """The prefixes of a beam after the last frame, from the highest score to the lowest.

    Args:
        tokens: the token ids of each prefix, in order, with -1 between them.
        log_probs: ln of the probability of each prefix: the sum over those of its alignments that
            the search visited; -inf for a slot without a prefix.
        scores: `log_probs` and what the language model adds, by which the prefixes are sorted.
    """

    tokens: Int[Tensor, "b k t"]
    log_probs: Float64[Tensor, "b k"]
    scores: Float64[Tensor, "b k"]

    def best(self) -> list[list[int]]:
        """Returns the token ids of the prefix with the highest score, for each row."""
        rows = self.tokens[:, 0].tolist()
        return [[token for token in row if token >= 0] for row in rows]


class Frames(NamedTuple):
    """The frames that a search visits: those with a probable token.

    Args:
        log_probs: ln of the probabilities; padding is a certain blank.
        gaps: ln of the probability that all frames skipped before each frame are blank.
        is_after_gap: whether frames were skipped before it.
        last_gaps: as `gaps`, of the frames skipped after the last frame of each row.
    """

    log_probs: Float64[Tensor, "b t v"]
    gaps: Float64[Tensor, "b t"]
    is_after_gap: Bool[Tensor, "b t"]
    last_gaps: Float64[Tensor, " b"]


class Beam(NamedTuple):
    """The k prefixes of each row.

    Args:
        blank: ln of the probability of all alignments of the prefix that end in a blank.
        token: the same of those that end in its last token.
        last: last token of the prefix, the blank if it is empty.
        key, parent: hashes of the prefix, and of the prefix without its last token.
        fused: what the language model added so far.
    """

    blank: Float64[Tensor, "b k"]
    token: Float64[Tensor, "b k"]
    last: Int[Tensor, "b k"]
    key: Int[Tensor, "b k"]
    parent: Int[Tensor, "b k"]
    fused: Float64[Tensor, "b k"]

    @property
    def total(self) -> Float64[Tensor, "b k"]:
        """ln of the probability of each prefix."""
        return torch.logaddexp(self.blank, self.token)


def prefix_beam_search(
    scores: Float[Tensor, "b t v"],
    lengths: Int[Tensor, " b"],
    beam: int,
    blank_threshold: float = 1.0,
    fusion: Fusion | None = None,
) -> Hypotheses:
    """Searches the prefixes with the highest sums over alignments.

    A prefix extended by a token that is in the beam already is merged with it, so that the k
    prefixes differ. Without a language model, the k + 1 most probable tokens of a frame are enough:
    no other extension can be among the k best.

    Args:
        scores: scores before the softmax; token 0 is the blank.
        lengths: frames of each row, without padding.
        beam: k, prefixes of each row.
        blank_threshold: frames whose blank is more probable are skipped, see `skip_blanks`.
        fusion: a language model.
    """
    # on the CPU: the steps are many and small, and so are the tables of a language model
    log_probs = scores.cpu().double().log_softmax(-1)
    frames = skip_blanks(log_probs, lengths.cpu(), blank_threshold)
    n_rows, n_frames, n_tokens = frames.log_probs.shape
    n_candidates = beam + 1
    if fusion is not None:
        n_candidates = max(n_candidates, fusion.n_candidates)
    n_candidates = min(n_candidates, n_tokens - 1)

    # the empty prefix, and what became of each slot at each frame: its parent slot and its token
    prefixes = _empty_prefix(n_rows)
    state = None if fusion is None else fusion.start(n_rows)
    slots = []
    emitted = []
    for i in range(n_frames):
        prefixes = _after_gap(prefixes, frames.gaps[:, i], frames.is_after_gap[:, i])
        step = _Step(frames.log_probs[:, i], prefixes, n_candidates)
        added = None
        if fusion is not None and state is not None:
            added = fusion.next_scores(state)
        slot, token, is_extended, prefixes = step.select(beam, added)
        if fusion is not None and state is not None:
            state = fusion.extend(_reorder(state, slot), prefixes.last, is_extended)
        slots.append(slot)
        emitted.append(token)
    return _conclude(prefixes, frames, slots, emitted, fusion, state)


def skip_blanks(
    log_probs: Float64[Tensor, "b t v"], lengths: Int[Tensor, " b"], threshold: float
) -> Frames:
    """Skips frames whose blank has a probability above `threshold`, and packs the others.

    The skipped frames count as blanks with their probability, so that a token may be repeated after
    them. Only alignments with another token in a skipped frame are lost: the probability of each
    prefix is never too large, and that of all prefixes together is lower by 1 - Π p(blank) over the
    skipped frames. A threshold of 1 skips nothing.
    """
    size = log_probs.shape[1]
    real = length_mask(lengths, size)
    blank = log_probs[..., BLANK_ID]
    is_skipped = real & (blank > math.log(threshold))
    is_visited = real & ~is_skipped
    # visited frames first, in their order
    order = (~is_visited).byte().argsort(dim=1, stable=True)
    n_visited = is_visited.sum(1)
    order = order[:, : int(n_visited.max())]
    visited = log_probs.gather(1, order[..., None].expand(-1, -1, log_probs.shape[2]))
    padding = ~length_mask(n_visited, order.shape[1])
    certain_blank = log_probs.new_full(log_probs.shape[2:], IMPOSSIBLE)
    certain_blank[BLANK_ID] = 0.0
    visited = torch.where(padding[..., None], certain_blank, visited)
    # skipped blanks before each visited frame, and after the last one
    skipped = torch.where(is_skipped, blank, 0.0).cumsum(1)
    counts = is_skipped.cumsum(1)
    skipped_before = pad(skipped.gather(1, order), (1, 0))
    counts_before = pad(counts.gather(1, order), (1, 0))
    gaps = skipped_before.diff(dim=1).masked_fill(padding, 0.0)
    is_after_gap = (counts_before.diff(dim=1) > 0) & ~padding
    # also of signals without frames
    all_skipped = pad(skipped, (1, 0))[:, -1]
    return Frames(visited, gaps, is_after_gap, all_skipped - gaps.sum(1))


def _empty_prefix(n_rows: int) -> Beam:
    zeros = torch.zeros(n_rows, 1, dtype=torch.float64)
    ids = torch.zeros(n_rows, 1, dtype=torch.long)
    return Beam(
        blank=zeros,
        token=zeros + IMPOSSIBLE,
        last=ids + BLANK_ID,
        key=ids,
        parent=ids + NO_PARENT,
        fused=zeros,
    )


def _after_gap(
    prefixes: Beam, gaps: Float64[Tensor, " b"], is_after_gap: Bool[Tensor, " b"]
) -> Beam:
    """Returns the prefixes after skipped frames, in which each emits a blank."""
    blank = torch.where(is_after_gap[:, None], prefixes.total + gaps[:, None], prefixes.blank)
    token = prefixes.token.masked_fill(is_after_gap[:, None], IMPOSSIBLE)
    return prefixes._replace(blank=blank, token=token)


class _Step:
    """All prefixes of the next frame: those of the beam, and each of them with another token."""

    def __init__(self, log_probs: Float64[Tensor, "b v"], prefixes: Beam, n_candidates: int):
        self.prefixes = prefixes
        # the most probable tokens; a last one that cannot be chosen takes what is removed
        best = log_probs[:, 1:].topk(n_candidates, dim=1)
        self.tokens = pad(best.indices + 1, (0, 1))
        candidates = pad(best.values, (0, 1), value=IMPOSSIBLE)
        total = prefixes.total
        # a prefix is continued by a blank or by its last token
        of_last = log_probs.gather(1, prefixes.last)
        self.blank = total + log_probs[:, :1]
        self.token = prefixes.token + of_last
        # a token that equals the last one of a prefix extends only alignments that end in a blank
        repeats = self.tokens[:, None] == prefixes.last[..., None]
        source = torch.where(repeats, prefixes.blank[..., None], total[..., None])
        self.extended = source + candidates[:, None]
        self._merge(total, of_last)

    def _merge(self, total: Float64[Tensor, "b k"], of_last: Float64[Tensor, "b k"]) -> None:
        """Merges extensions with equal prefixes of the beam, that is, of which they are parents."""
        prefixes = self.prefixes
        # parent i, child j; a child has one parent at most
        is_parent = prefixes.key[:, :, None] == prefixes.parent[:, None]
        repeats = prefixes.last[:, :, None] == prefixes.last[:, None]
        source = torch.where(repeats, prefixes.blank[:, :, None], total[:, :, None])
        source = torch.where(is_parent, source, IMPOSSIBLE).amax(1)
        self.token = torch.logaddexp(self.token, source + of_last)
        # where the extension of the parent by this token is listed
        n_listed = self.tokens.shape[1]
        is_listed = self.tokens[:, None] == prefixes.last[..., None]
        column = torch.where(is_listed.any(-1), is_listed.byte().argmax(-1), n_listed - 1)
        column = torch.where(is_parent.any(1), column, n_listed - 1)
        index = is_parent.byte().argmax(1) * n_listed + column
        self.extended = (
            self.extended.flatten(1).scatter(1, index, IMPOSSIBLE).view_as(self.extended)
        )

    def select(
        self, beam: int, added: Float64[Tensor, "b k v"] | None
    ) -> tuple[Tensor, Tensor, Tensor, Beam]:
        """Selects the prefixes with the highest scores.

        Args:
            added: what a language model adds for each token.

        Returns:
            The slot of each prefix in the beam before, the token that it was extended by (-1 for
            none), whether it was extended, and the new beam.
        """
        prefixes = self.prefixes
        n_slots = prefixes.last.shape[1]
        n_listed = self.tokens.shape[1]
        fused = prefixes.fused[..., None].expand(-1, -1, n_listed)
        if added is not None:
            fused = fused + added.gather(2, self.tokens[:, None].expand(-1, n_slots, -1))
        fused = torch.cat((prefixes.fused, fused.flatten(1)), 1)
        blank = pad(self.blank, (0, n_slots * n_listed), value=IMPOSSIBLE)
        token = torch.cat((self.token, self.extended.flatten(1)), 1)
        # of equal scores the first comes first, so that a certain blank changes no order
        scores = torch.logaddexp(blank, token) + fused
        best = scores.sort(dim=1, descending=True, stable=True)
        index = best.indices[:, :beam]
        is_possible = best.values[:, :beam] > IMPOSSIBLE

        # their slots and tokens
        is_extended = index >= n_slots
        slot = torch.where(is_extended, (index - n_slots) // n_listed, index)
        listed = self.tokens.gather(1, (index - n_slots).clamp(min=0) % n_listed)
        last = torch.where(is_extended, listed, prefixes.last.gather(1, slot))
        key = prefixes.key.gather(1, slot)
        parent = torch.where(is_extended, key, prefixes.parent.gather(1, slot))
        key = torch.where(is_extended, MULTIPLIER * key + last + 1, key)
        selected = Beam(
            blank=blank.gather(1, index),
            token=token.gather(1, index),
            last=last,
            # a slot without a prefix must not equal the prefix that it was merged with
            key=key.masked_fill(~is_possible, NO_PREFIX),
            parent=parent.masked_fill(~is_possible, NO_PARENT),
            fused=fused.gather(1, index),
        )
        return slot, listed.masked_fill(~is_extended, -1), is_extended, selected


def _reorder(state: State, slot: Int[Tensor, "b k"]) -> State:
    """Returns the state of the prefixes in these slots."""
    rows = torch.arange(len(slot))[:, None]
    return {name: values[rows, slot] for name, values in state.items()}


def _conclude(
    prefixes: Beam,
    frames: Frames,
    slots: list[Tensor],
    emitted: list[Tensor],
    fusion: Fusion | None,
    state: State | None,
) -> Hypotheses:
    """Sorts the prefixes with the end of their texts, and collects their tokens."""
    log_probs = prefixes.total + frames.last_gaps[:, None]
    scores = log_probs + prefixes.fused
    if fusion is not None and state is not None:
        scores = scores + fusion.end_scores(state)
    best = scores.sort(dim=1, descending=True, stable=True)
    # from the last frame to the first
    slot = best.indices
    columns = []
    for parent, token in zip(reversed(slots), reversed(emitted), strict=True):
        columns.append(token.gather(1, slot))
        slot = parent.gather(1, slot)
    columns.reverse()
    tokens = torch.stack(columns, 2) if columns else slot.new_empty(*slot.shape, 0)
    return Hypotheses(tokens, log_probs.gather(1, best.indices), best.values)
