"""A conformer's convolution for one sequence without padding, a position and a channel at a time."""

import torch


def convolution(module, x, causal):
    """`x`: (t d), all of it real. Returns (t d)."""
    value, gate = module.into(x).chunk(2, dim=-1)
    x = value * torch.sigmoid(gate)
    weight, bias = module.channelwise.weight[:, 0], module.channelwise.bias
    size = weight.shape[1]
    mixed = torch.empty_like(x)
    for t in range(len(x)):
        for d in range(x.shape[1]):
            total = bias[d]
            for tap in range(size):
                s = t + tap - (size - 1 if causal else size // 2)
                if 0 <= s < len(x):
                    total = total + weight[d, tap] * x[s, d]
            mixed[t, d] = total
    mixed = module.norm(mixed)
    return module.out(mixed * torch.sigmoid(mixed))
