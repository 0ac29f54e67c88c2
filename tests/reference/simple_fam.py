"""SimpleFAM in plain form: one tensor at a time, as seed.md describes it."""

import torch


class PlainSimpleFAM:
    def __init__(self, params, lr=1e-3, alpha=0.9):
        self.params = params
        self.lr = lr
        self.alpha = alpha
        self.averages = [torch.zeros_like(p) for p in params]
        self.steps = 0

    def step(self, gradients):
        self.steps += 1
        for p, average, gradient in zip(self.params, self.averages, gradients, strict=True):
            a = self.alpha
            if p.numel() > 1000 and self.steps > 100:
                magnitude = torch.fft.rfft(gradient.flatten()[:1000]).abs()
                upper = magnitude[len(magnitude) // 2 :].sum() / (magnitude.sum() + 1e-8)
                a = min(0.98, a + 0.05 * upper.item())
            average.copy_(a * average + (1 - a) * gradient)
            p.sub_(self.lr * average)
