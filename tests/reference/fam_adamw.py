"""AdamW whose beta1 may change at every step, in plain form: one tensor at a time."""

import torch


class PlainRuledAdamW:
    """AdamW; `momenta()` returns the coefficients of this step."""

    def __init__(self, params, momenta, lr, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01):
        self.params = params
        self.momenta = momenta
        self.lr = lr
        self.beta2 = betas[1]
        self.eps = eps
        self.weight_decay = weight_decay
        self.m = [torch.zeros_like(p) for p in params]
        self.v = [torch.zeros_like(p) for p in params]
        self.products = [1.0] * len(params)
        self.t = 0

    def step(self, gradients):
        self.t += 1
        rows = zip(self.params, gradients, self.momenta(), strict=True)
        for i, (p, gradient, a) in enumerate(rows):
            self.products[i] *= a
            self.m[i] = a * self.m[i] + (1 - a) * gradient
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * gradient.square()
            m = self.m[i] / (1 - self.products[i])
            v = self.v[i] / (1 - self.beta2**self.t)
            p.sub_(self.lr * (m / (v.sqrt() + self.eps) + self.weight_decay * p))
