"""Momentum per band in plain form: the averages are kept as frequencies, one band after another."""

import torch


class PlainBandwise:
    def __init__(self, params, lr, alpha=0.9, spread=0.05, n_bands=8):
        self.params, self.lr, self.alpha, self.spread, self.n_bands = (
            params,
            lr,
            alpha,
            spread,
            n_bands,
        )
        self.bins = [torch.fft.rfft(torch.zeros_like(p).flatten()) for p in params]

    def step(self, gradients):
        for p, gradient, bins in zip(self.params, gradients, self.bins, strict=True):
            new = torch.fft.rfft(gradient.flatten())
            width, n = len(bins) // self.n_bands, self.n_bands
            for band in range(n):
                part = slice(band * width, (band + 1) * width if band < n - 1 else len(bins))
                a = self.alpha + self.spread * (2 * band / (n - 1) - 1)
                bins[part] = a * bins[part] + (1 - a) * new[part]
            p.sub_(self.lr * torch.fft.irfft(bins, n=p.numel()).view(p.shape))
