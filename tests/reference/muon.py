"""Muon in plain form: one matrix at a time, in single precision (Jordan et al. 2024)."""

import torch


class PlainMuon:
    def __init__(self, params, lr=1e-3, alpha=0.95, weight_decay=0.01, nesterov=True):
        self.params = params
        self.lr = lr
        self.alpha = alpha
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.averages = [torch.zeros_like(p) for p in params]

    def step(self):
        a = self.alpha
        for p, average in zip(self.params, self.averages, strict=True):
            if p.grad is None:
                continue
            average.copy_(a * average + (1 - a) * p.grad)
            x = a * average + (1 - a) * p.grad if self.nesterov else average
            x = x / x.norm().clamp(min=1e-7)
            for _ in range(5):
                # from the left or the right, whichever is smaller
                if x.shape[0] > x.shape[1]:
                    gram = x.T @ x
                    x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
                else:
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            size = 0.2 * max(p.shape) ** 0.5
            p.sub_(self.lr * (size * x + self.weight_decay * p))
