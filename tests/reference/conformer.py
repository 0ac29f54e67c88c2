"""The convolution of a conformer for one unpadded sequence, a position and a channel at a time."""

import torch


def convolve(module, x, causal):
    """Returns (t d) for `x` (t d)."""
    value, gate = module.into(x).chunk(2, dim=-1)
    x = value * torch.sigmoid(gate)
    weight = module.channelwise.weight[:, 0]
    bias = module.channelwise.bias
    size = weight.shape[1]
    taps_into_past = size - 1 if causal else size // 2
    y = torch.empty_like(x)
    for t in range(len(x)):
        for d in range(x.shape[1]):
            total = bias[d]
            for tap in range(size):
                s = t + tap - taps_into_past
                if 0 <= s < len(x):
                    total = total + weight[d, tap] * x[s, d]
            y[t, d] = total
    y = module.norm(y)
    return module.out(y * torch.sigmoid(y))
