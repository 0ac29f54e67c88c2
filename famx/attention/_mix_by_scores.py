"""Mixing of values by the scores of the relative-force block, at once or in chunks of queries."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from famx.attention._chunks import mask_of_queries, query_chunks
from famx.attention._relative_force import ScoreTerms, by_head


class _Keys(NamedTuple):
    """Vectors of the keys that all scores need, in the precision of the distances."""

    wide_r: Float[Tensor, "b s d"]
    r_square: Float[Tensor, "b 1 s"]
    wide_directions: Float[Tensor, "h d"]
    against: Float[Tensor, "b h s 1"]


class _Computed(NamedTuple):
    """Intermediate results of the scores, which their gradients need."""

    rho: Float[Tensor, "b 1 t s"]
    fade: Float[Tensor, "b 1 t s"]
    along: Float[Tensor, "b h t 1"]
    against: Float[Tensor, "b h s 1"]
    weights: Float[Tensor, "b h t s"]


class MixByScores(torch.autograd.Function):
    """`softmax(scores) value` with the scores of `ScoreTerms`.

    Also returns the weights, without a gradient.

    The squared distances come from one product of matrices. It loses digits if two points nearly
    coincide, so it is computed in double precision (single if the device has no double); the
    gradients lose no more digits than the points themselves. Few buffers of the size of the weights
    are allocated, since an allocation takes longer than the operations on it.
    """

    @staticmethod
    def forward(
        ctx,
        value: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        softness: float,
        *terms: Any,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t s"]]:
        score_terms = ScoreTerms(*terms)
        computed = _compute_weights(_keys(score_terms, softness), mask, softness, score_terms)
        y = computed.weights.to(value) @ value
        ctx.save_for_backward(value, *terms, *computed, y)
        ctx.mark_non_differentiable(computed.weights)
        ctx.set_materialize_grads(False)
        return y, computed.weights

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Float[Tensor, "b h t k"], _: None) -> tuple[Tensor | None, ...]:
        value, *saved, y = ctx.saved_tensors
        n_terms = len(ScoreTerms._fields)
        terms = ScoreTerms(*saved[:n_terms])
        grad_value, grad_terms = _gradients(grad_y, y, value, terms, _Computed(*saved[n_terms:]))
        # in the order of the arguments of `forward`; mask and softness have no gradient
        return grad_value, None, None, *grad_terms


class MixByScoresInChunks(torch.autograd.Function):
    """`MixByScores` for some queries at a time, whose weights are computed again for the gradients.

    Instead of all weights it returns those of the last sample, or none.
    """

    @staticmethod
    def forward(
        ctx,
        value: Float[Tensor, "b h s k"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        softness: float,
        chunk: int,
        observed: bool,
        *terms: Any,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "_ h t _"]]:
        score_terms = ScoreTerms(*terms)
        keys = _keys(score_terms, softness)
        outputs = []
        last_weights = []
        for rows in query_chunks(score_terms.share.shape[2], chunk):
            part = _select_queries(score_terms, rows)
            computed = _compute_weights(keys, mask_of_queries(mask, rows), softness, part)
            outputs.append(computed.weights.to(value) @ value)
            if observed:
                last_weights.append(computed.weights[-1:].clone())
            # released before the weights of the next chunk are allocated
            del computed
        y = torch.cat(outputs, 2)
        weights = torch.cat(last_weights, 2) if observed else y.new_empty(0, *y.shape[1:3], 0)
        ctx.save_for_backward(value, mask, *terms, y)
        ctx.softness = softness
        ctx.chunk = chunk
        ctx.mark_non_differentiable(weights)
        ctx.set_materialize_grads(False)
        return y, weights

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Float[Tensor, "b h t k"], _: None) -> tuple[Tensor | None, ...]:
        value, mask, *saved, y = ctx.saved_tensors
        terms = ScoreTerms(*saved)
        keys = _keys(terms, ctx.softness)
        wide = torch.promote_types(value.dtype, torch.float32)
        grad_value = torch.zeros_like(value, dtype=wide)
        # the gradients of the keys are sums over all queries
        total: ScoreTerms | None = None
        by_query = []
        for rows in query_chunks(terms.share.shape[2], ctx.chunk):
            part = _select_queries(terms, rows)
            computed = _compute_weights(keys, mask_of_queries(mask, rows), ctx.softness, part)
            queries_y = y[:, :, rows]
            part_value, part_terms = _gradients(
                grad_y[:, :, rows], queries_y, value, part, computed
            )
            del computed
            grad_value += part_value
            by_query.append((part_terms.share, part_terms.u, part_terms.e, part_terms.rows))
            total = part_terms if total is None else _add_key_gradients(total, part_terms)
        assert total is not None
        share, u, e, paths = zip(*by_query, strict=True)
        joined = total._replace(
            share=torch.cat(share, 2),
            u=torch.cat(u, 2),
            e=torch.cat(e, 1),
            rows=None if terms.rows is None else torch.cat(paths, 2),
        )
        return grad_value.to(value), None, None, None, None, *joined


def _select_queries(terms: ScoreTerms, rows: slice) -> ScoreTerms:
    """Returns the terms of a chunk of queries and all keys."""
    return terms._replace(
        share=terms.share[:, :, rows],
        u=terms.u[:, :, rows],
        e=terms.e[:, rows],
        rows=None if terms.rows is None else terms.rows[:, :, rows],
    )


def _add_key_gradients(total: ScoreTerms, grads: ScoreTerms) -> ScoreTerms:
    """Returns the total with the gradients of the keys by one more chunk added, in place."""
    total.v.add_(grads.v)
    total.r.add_(grads.r)
    total.directions.add_(grads.directions)
    if total.columns is not None and grads.columns is not None:
        total.columns.add_(grads.columns)
    return total


def _keys(terms: ScoreTerms, softness: float) -> _Keys:
    """Returns what the scores of all queries need of the keys."""
    exact = torch.float32 if terms.e.device.type == "mps" else torch.float64
    wide_r = terms.r.to(exact)
    wide_directions = terms.directions.to(exact)
    r_square = (wide_r.square().sum(-1) + softness**2)[:, None]
    against = by_head((wide_r @ wide_directions.T).to(terms.e))
    return _Keys(wide_r, r_square, wide_directions, against)


def _compute_weights(
    keys: _Keys,
    mask: Bool[Tensor, "#b #h #t s"] | None,
    softness: float,
    terms: ScoreTerms,
) -> _Computed:
    """Returns the weights of some queries."""
    share, u, v, e, _, _, rows, columns = terms
    # distances
    wide_e = e.to(keys.wide_r)
    e_square = wide_e.square().sum(-1)[:, :, None]
    rho_square = (e_square + keys.r_square).baddbmm_(wide_e, keys.wide_r.mT, alpha=-2)
    rho = rho_square.to(e).clamp_(min=softness**2).sqrt_()[:, None]

    # force: `along` and `against` are added one after the other, since their difference would
    # need one more buffer
    fade = rho.neg().exp_().div_(rho)
    along = by_head((wide_e @ keys.wide_directions.T).to(e))
    scores = (u + v.mT).contiguous()
    torch.div(share, scores, out=scores)
    scores.addcmul_(along, fade).addcmul_(keys.against.mT, fade, value=-1)

    # paths
    if rows is not None and columns is not None:
        scores.flatten(0, 1).baddbmm_(rows.flatten(0, 1), columns.flatten(0, 1).mT)

    # softmax
    if mask is not None:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, out=scores)
    return _Computed(rho, fade, along, keys.against, weights)


def _gradients(
    grad_y: Float[Tensor, "b h t k"],
    y: Float[Tensor, "b h t k"],
    value: Float[Tensor, "b h s k"],
    terms: ScoreTerms,
    computed: _Computed,
) -> tuple[Float[Tensor, "b h s k"], ScoreTerms]:
    """Returns the gradients of the values and of the terms, by those of some queries."""
    share, u, v, e, r, directions, rows, columns = terms
    rho, fade, along, against, weights = computed

    # softmax: from here on, `grad` is the gradient of the scores
    grad_value = weights.to(grad_y).mT @ grad_y
    row_sum = (grad_y.to(weights) * y).sum(-1, keepdim=True)
    grad = (grad_y @ value.mT).to(weights).sub_(row_sum).mul_(weights)

    # force
    buffer = grad * fade
    grad_along = buffer.sum(-1)
    grad_against = buffer.sum(-2)
    grad_fade = torch.sub(along, against.mT, out=buffer).mul_(grad).sum(1, keepdim=True)
    # gradient of -|e_i - r_j|^2 / 2
    near = grad_fade.mul_(fade).mul_((1 + 1 / rho).div_(rho))[:, 0]
    grad_e = torch.baddbmm(grad_along.mT @ directions, near, r)
    grad_e.addcmul_(near.sum(-1)[..., None], e, value=-1)
    grad_r = torch.baddbmm(grad_against.mT @ -directions, near.mT, e)
    grad_r.addcmul_(near.sum(-2)[..., None], r, value=-1)
    grad_directions = (grad_along @ e - grad_against @ r).sum(0)

    # paths
    grad_rows = None if columns is None else grad @ columns
    grad_columns = None if rows is None else grad.mT @ rows

    # single edges, share / (u + v)
    total = torch.add(u, v.mT, out=buffer)
    grad_share = grad.div_(total).sum(-1, keepdim=True)
    falling = grad.div_(total).mul_(share)
    grad_u = -falling.sum(-1, keepdim=True)
    grad_v = -falling.sum(-2)[..., None]
    grad_points = (grad_e, grad_r, grad_directions)
    grads = ScoreTerms(grad_share, grad_u, grad_v, *grad_points, grad_rows, grad_columns)
    return grad_value, grads
