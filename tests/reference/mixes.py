"""Each way of mixing values as its formula reads: all weights written out, hidden places left out of each sum."""

import torch


def normalized(weights, seen):
    weights = weights * seen
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, 0.0)


def scores(q, k):
    return torch.einsum("bhtk,bhsk->bhts", q, k) / q.shape[-1] ** 0.5


def cosine(block, q, k, v, seen):
    lengths = q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]
    cosines = torch.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    return normalized((cosines * lengths.sqrt()).exp(), seen) @ v


def gaussian(block, q, k, v, seen):
    squares = torch.cdist(q, k, compute_mode="donot_use_mm_for_euclid_dist").square()
    return normalized((-squares / (2 * q.shape[-1] ** 0.5)).exp(), seen) @ v


def taylor(block, q, k, v, seen):
    powers = [scores(q, k) ** i / torch.arange(1, i + 1).prod() for i in range(block.order + 1)]
    return normalized(sum(powers), seen) @ v


def topk(block, q, k, v, seen):
    y = torch.zeros_like(q)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        b, h, t = at
        places = seen[b, h, t].nonzero().flatten()
        row = scores(q, k)[b, h, t, places]
        best = row.argsort(descending=True)[: block.keys]
        y[b, h, t] = row[best].softmax(0) @ v[b, h, places[best]]
    return y


def alibi(block, q, k, v, seen):
    t, s = q.shape[2], k.shape[2]
    bias = torch.tensor(
        [[[-(2 ** (-8 * (h + 1) / block.n_heads)) * abs(s - t + i - j) for j in range(s)] for i in range(t)]
         for h in range(block.n_heads)]
    )  # fmt: skip
    return normalized((scores(q, k) + bias).exp(), seen) @ v


def differential(block, q, k, v, seen):
    (l1, l2), (m1, m2) = block.exponents
    share = (l1 @ m1).exp() - (l2 @ m2).exp() + block.start
    weights, heads = normalized(scores(q, k).exp(), seen), []
    for h in range(0, block.n_heads, 2):
        y = (weights[:, h] - share * weights[:, h + 1]) @ torch.cat((v[:, h], v[:, h + 1]), -1)
        y = (1 - block.start) * y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        heads += y.chunk(2, dim=-1)
    return torch.stack(heads, 1)


def focus(block, q, k, v, seen):
    y = torch.zeros_like(q)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        b, h, t = at

        def attend(query, b=b, h=h, t=t):
            weights = normalized((k[b, h] @ query / len(query) ** 0.5).exp(), seen[b, h, t])
            return weights @ v[b, h]

        query = q[b, h, t]
        found = attend(query)
        for _ in range(block.steps):
            before, query = found, query + found
            found = attend(query)
            if (found - before).norm() <= block.threshold * before.norm():
                break
        y[b, h, t] = found
    return y
