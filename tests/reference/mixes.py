"""The `mix` of each block as its formula reads: all weights, hidden keys out of each sum."""

import torch


def normalize(weights, mask):
    weights = weights * mask
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, 0.0)


def scores(q, k):
    return torch.einsum("bhtk,bhsk->bhts", q, k) / q.shape[-1] ** 0.5


def indices(q):
    """Returns (sample, head, position) of each query."""
    return torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist()


def cosine(block, q, k, v, mask):
    lengths = q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]
    cosines = torch.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    return normalize((cosines * lengths.sqrt()).exp(), mask) @ v


def gaussian(block, q, k, v, mask):
    squares = torch.cdist(q, k, compute_mode="donot_use_mm_for_euclid_dist").square()
    return normalize((-squares / (2 * q.shape[-1] ** 0.5)).exp(), mask) @ v


def taylor(block, q, k, v, mask):
    a = scores(q, k)
    total = torch.ones_like(a)
    for i in range(1, block.order + 1):
        total = total + a**i / torch.arange(1, i + 1).prod()
    return normalize(total, mask) @ v


def topk(block, q, k, v, mask):
    y = torch.zeros_like(q)
    for b, h, t in indices(q):
        visible = mask[b, h, t].nonzero().flatten()
        row = scores(q, k)[b, h, t, visible]
        best = row.argsort(descending=True)[: block.keys]
        y[b, h, t] = row[best].softmax(0) @ v[b, h, visible[best]]
    return y


def alibi(block, q, k, v, mask):
    t = q.shape[2]
    s = k.shape[2]
    bias = torch.empty(block.n_heads, t, s)
    for h in range(block.n_heads):
        slope = 2 ** (-8 * (h + 1) / block.n_heads)
        for i in range(t):
            for j in range(s):
                bias[h, i, j] = -slope * abs(s - t + i - j)
    return normalize((scores(q, k) + bias).exp(), mask) @ v


def differential(block, q, k, v, mask):
    (l1, l2), (m1, m2) = block.exponents
    coefficient = (l1 @ m1).exp() - (l2 @ m2).exp() + block.start
    weights = normalize(scores(q, k).exp(), mask)
    heads = []
    for h in range(0, block.n_heads, 2):
        difference = weights[:, h] - coefficient * weights[:, h + 1]
        y = difference @ torch.cat((v[:, h], v[:, h + 1]), -1)
        y = (1 - block.start) * y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        heads += y.chunk(2, dim=-1)
    return torch.stack(heads, 1)


def focus(block, q, k, v, mask):
    def attend(query, b, h, t):
        weights = normalize((k[b, h] @ query / len(query) ** 0.5).exp(), mask[b, h, t])
        return weights @ v[b, h]

    outputs = torch.zeros_like(q)
    for b, h, t in indices(q):
        query = q[b, h, t]
        y = attend(query, b, h, t)
        for _ in range(block.steps):
            query = query + y
            previous = y
            y = attend(query, b, h, t)
            if (y - previous).norm() <= block.threshold * previous.norm():
                break
        outputs[b, h, t] = y
    return outputs
