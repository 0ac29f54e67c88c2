"""Taylor attention in chunks of queries, whose weights are computed again for the gradients."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from famx.attention._chunks import mask_of_queries, query_chunks


class MixByPolynomial(torch.autograd.Function):
    """`(w / sum w) v` with `w = L^-n p(a)`, p the Taylor polynomial of order n, `a = q k^T`.

    L is a bound of `|a|` for each query, at least 1, so that no power overflows: `|q| max |k|`.
    With `s = a / L`, which is the product of `q / L` and k, `w = p_n(s)` and `dw/ds = p_(n-1)(s)`,
    where `p_m(s) = L^-m + L^-(m-1) s + ... + s^m / m!`.
    """

    @staticmethod
    def forward(
        ctx,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b h s k"],
        v: Float[Tensor, "b h s v"],
        mask: Bool[Tensor, "#b #h #t s"] | None,
        order: int,
        chunk: int,
    ) -> Float[Tensor, "b h t v"]:
        q, inverse = _scale_queries(q, k)
        # a column of ones, whose mix is the sum of the weights
        values = pad(v, (0, 1), value=1.0)
        mixed = []
        for rows in query_chunks(q.shape[2], chunk):
            scores = q[:, :, rows] @ k.mT
            weights = _polynomial(scores, inverse[:, :, rows], order)
            mixed.append(_hide(weights, mask_of_queries(mask, rows)) @ values)
            # released before those of the next chunk are allocated
            del scores, weights
        y, total = _wide(torch.cat(mixed, 2)).split((v.shape[-1], 1), -1)
        # the sum is 0 only if no key is visible
        total = total + (total == 0)
        y = (y / total).to(v)
        ctx.save_for_backward(q, k, v, mask, inverse, y, total)
        ctx.order = order
        ctx.chunk = chunk
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Float[Tensor, "b h t v"]) -> tuple[Tensor | None, ...]:
        q, k, v, mask, inverse, y, total = ctx.saved_tensors
        # the gradient of a weight is `(grad - <grad, y>) v / total`: one product with a column more
        row_sum = (_wide(grad) * y).sum(-1, keepdim=True)
        grad = (torch.cat((_wide(grad), -row_sum), -1) / total).to(v)
        values = pad(v, (0, 1), value=1.0)
        grad_q = []
        grad_k = torch.zeros_like(_wide(k))
        grad_v = torch.zeros_like(_wide(v))
        for rows in query_chunks(q.shape[2], ctx.chunk):
            part_q = q[:, :, rows]
            part_grad = grad[:, :, rows]
            part_mask = mask_of_queries(mask, rows)
            scores = part_q @ k.mT
            slope = _polynomial(scores, inverse[:, :, rows], ctx.order - 1)
            weights = _hide(_polynomial(scores, inverse[:, :, rows], ctx.order), part_mask)
            grad_v += weights.mT @ part_grad[..., :-1]
            del weights
            grad_scores = _hide(slope.mul_(part_grad @ values.mT), part_mask)
            grad_q.append(grad_scores @ k)
            grad_k += grad_scores.mT @ part_q
            del scores, slope, grad_scores
        # the bound is a constant of the derivative, since the weights do not depend on it
        joined_q = (_wide(torch.cat(grad_q, 2)) * _query_scale(inverse, k)).to(q)
        return joined_q, grad_k.to(k), grad_v.to(v), None, None, None


def _scale_queries(
    q: Float[Tensor, "b h t k"], k: Float[Tensor, "b h s k"]
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t 1"]]:
    """Returns `q / (L sqrt(head_dim))`, and `1 / L`."""
    longest = _wide(k).norm(dim=-1).amax(-1)[..., None, None]
    bound = _wide(q).norm(dim=-1, keepdim=True) * longest / q.shape[-1] ** 0.5
    inverse = 1 / bound.clamp(min=1)
    return (_wide(q) * _query_scale(inverse, k)).to(q), inverse


def _query_scale(
    inverse: Float[Tensor, "b h t 1"], k: Float[Tensor, "b h s k"]
) -> Float[Tensor, "b h t 1"]:
    return inverse / k.shape[-1] ** 0.5


def _polynomial(
    s: Float[Tensor, "b h t s"], inverse: Float[Tensor, "b h t 1"], order: int
) -> Float[Tensor, "b h t s"]:
    """Returns `L^-m + L^-(m-1) s + ... + s^m / m!` for `m = order`, by Horner's scheme."""
    total = torch.add(inverse.to(s), s, alpha=1 / order)
    for i in range(order - 1, 0, -1):
        power = (inverse ** (order + 1 - i)).to(s)
        total = torch.addcmul(power, s, total, value=1 / i)
    return total


def _hide(
    x: Float[Tensor, "b h t s"], mask: Bool[Tensor, "#b #h #t s"] | None
) -> Float[Tensor, "b h t s"]:
    return x if mask is None else x.mul_(mask)


def _wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Returns x in at least single precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
