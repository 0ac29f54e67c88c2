"""Momentum for each band in plain form: averages are stored as frequencies, band after band."""

import torch


class PlainBandwise:
    def __init__(self, params, lr, alpha=0.9, spread=0.05, n_bands=8):
        self.params = params
        self.lr = lr
        self.alpha = alpha
        self.spread = spread
        self.n_bands = n_bands
        self.bins = [torch.fft.rfft(torch.zeros_like(p).flatten()) for p in params]

    def step(self, gradients):
        n = self.n_bands
        for p, gradient, bins in zip(self.params, gradients, self.bins, strict=True):
            new = torch.fft.rfft(gradient.flatten())
            width = len(bins) // n
            for band in range(n):
                # the last band has the rest of the bins
                stop = (band + 1) * width if band < n - 1 else len(bins)
                part = slice(band * width, stop)
                a = self.alpha + self.spread * (2 * band / (n - 1) - 1)
                bins[part] = a * bins[part] + (1 - a) * new[part]
            p.sub_(self.lr * torch.fft.irfft(bins, n=p.numel()).view(p.shape))
