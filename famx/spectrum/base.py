"""What spectra share: how bands divide the bins of a spectrum, and what white noise would give them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from famx.notation import Layout, TensorInfo


def edges(layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
    """First and past-the-last bin of each band; every bin belongs to one band, every band has a bin.

    equal: bands of n_bins // n_bands bins. log: from N^(i/n) - 1 to N^((i+1)/n) - 1, at least one bin each.
    split: half of the bands on each half of the spectrum. Bins left over by a division belong to the last band.

    Raises:
        ValueError: there are fewer bins than bands.
    """
    if n_bins < n_bands:
        raise ValueError(f"n_bands={n_bands} is more than the {n_bins} bins of the spectrum")
    if layout == "split" and n_bands > 1:
        lower = edges("equal", n_bins // 2, n_bands // 2)
        upper = edges("equal", n_bins - n_bins // 2, n_bands - n_bands // 2)
        return lower + [(start + n_bins // 2, stop + n_bins // 2) for start, stop in upper]
    cuts = [0]
    for i in range(1, n_bands):
        cut = int(n_bins ** (i / n_bands) - 1) if layout == "log" else i * (n_bins // n_bands)
        cuts.append(min(max(cut, cuts[-1] + 1), n_bins - n_bands + i))
    return list(zip(cuts, [*cuts[1:], n_bins], strict=True))


def membership(
    bands: Sequence[tuple[int, int]], n_bins: int, most_bands: int
) -> Float[Tensor, "bins bands"]:
    """One where the bin belongs to the band."""
    member = torch.zeros(n_bins, most_bands)
    for band, (start, stop) in enumerate(bands):
        member[start:stop, band] = 1.0
    return member


class Spectrum(nn.Module):
    """Measures how each gradient's power is shared among its bands: `(gradients) -> (tensors, most bands)`.

    Its state are buffers, which a call replaces and never writes into: whoever calls can put the former ones back.

    Attributes:
        fresh: whether the last call measured; if not, it handed out the former shares.
        every: calls from one measurement to the next.
        white: the shares of white noise, zero where a tensor has fewer bands.
        capturable: False where it needs the host in every call. Where others count their calls, in `calls`, that may be
            a 0-d tensor, for CUDA graphs (`famx.optim.base.Optimizer`).
        freedom: independent power values behind the last measurement of a tensor, if its entries do not move together.
    """

    fresh: bool | Tensor = True
    every = 1
    capturable = True
    white: Tensor
    freedom: Tensor

    def __init__(self, tensors: Sequence[TensorInfo]):
        super().__init__()
        self.tensors = tensors
        self.most_bands = max((info.n_bands for info in tensors), default=0)

    def relative(self, shares: Float[Tensor, "tensors bands"]) -> Float[Tensor, "tensors bands"]:
        """The shares in units of white noise: 1 is white; 0 where a tensor has fewer bands."""
        return torch.where(self.white > 0, shares / self.white, 0.0)


class Sampled(Spectrum):
    """The spectrum along some of a gradient's entries: tensors alike in length and bands are measured together.

    A subclass says how many entries (`length`), which (`samples`), their `power`, and the `bands` of its bins.
    """

    def __init__(self, tensors: Sequence[TensorInfo]):
        super().__init__(tensors)
        self.alike: dict[tuple[Layout, int, int], list[int]] = {}
        for i, info in enumerate(tensors):
            self.alike.setdefault(
                (info.layout, self.length(info) // 2 + 1, info.n_bands), []
            ).append(i)
        white = torch.zeros(len(tensors), self.most_bands)
        for group, ((layout, n_bins, n_bands), rows) in enumerate(self.alike.items()):
            member = membership(self.bands(layout, n_bins, n_bands), n_bins, self.most_bands)
            white[rows] = member.sum(0) / member.sum().clamp_min(1.0)
            self.register_buffer(f"member{group}", member, persistent=False)
        order = [i for rows in self.alike.values() for i in rows]
        self.register_buffer(
            "order", torch.tensor(order, dtype=torch.long).argsort(), persistent=False
        )
        self.register_buffer("white", white, persistent=False)
        freedom = torch.tensor([(self.length(info) // 2 + 1) / 2 for info in tensors])
        self.register_buffer("freedom", freedom, persistent=False)

    def forward(self, gradients: Sequence[Tensor]) -> Float[Tensor, "tensors bands"]:
        samples = self.samples(gradients)
        shares = [
            self.power(torch.stack([samples[i] for i in rows]).float())
            @ getattr(self, f"member{group}")
            for group, rows in enumerate(self.alike.values())
        ]
        return torch.cat(shares)[self.order]

    def length(self, info: TensorInfo) -> int:
        """Entries read of a tensor."""
        raise NotImplementedError

    def bands(self, layout: Layout, n_bins: int, n_bands: int) -> list[tuple[int, int]]:
        """First and past-the-last bin of each band."""
        raise NotImplementedError

    def samples(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The entries read, one series a tensor."""
        raise NotImplementedError

    def power(self, series: Float[Tensor, "alike samples"]) -> Float[Tensor, "alike bins"]:
        """What each bin of each series holds, as a share of all."""
        raise NotImplementedError
