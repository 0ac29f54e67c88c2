"""Bands of bins, the entries that spectra read, and the metrics of bands."""

import pytest
import torch
from torch.testing import assert_close

from famx.notation import TensorInfo
from famx.spectrum.base import edges
from famx.spectrum.contiguous import Contiguous
from famx.spectrum.shuffled import Shuffled
from famx.spectrum.temporal import Temporal


@pytest.mark.parametrize("layout", ["equal", "log", "split"])
@pytest.mark.parametrize(
    ("n_bins", "n_bands"), [(17, 12), (17, 17), (5, 2), (1, 1), (513, 10), (3, 2)]
)
def test_every_bin_belongs_to_one_band_and_no_band_is_empty(layout, n_bins, n_bands):
    bands = edges(layout, n_bins, n_bands)
    starts = [start for start, _ in bands]
    stops = [stop for _, stop in bands]
    assert starts == [0, *stops[:-1]]
    assert stops[-1] == n_bins
    assert len(bands) == n_bands
    assert all(start < stop for start, stop in bands)


def test_bands_begin_where_their_layout_says():
    assert edges("equal", 18, 4) == [(0, 4), (4, 8), (8, 12), (12, 18)]
    assert edges("log", 256, 4) == [(0, 3), (3, 15), (15, 63), (63, 256)]
    assert edges("log", 17, 12)[:3] == [(0, 1), (1, 2), (2, 3)]
    assert edges("split", 18, 5) == [(0, 4), (4, 9), (9, 12), (12, 15), (15, 18)]


def test_followed_coordinates_are_spread_over_rows_and_columns():
    info = TensorInfo((128, 128))
    gradient = torch.arange(128 * 128).view(128, 128).float()
    coordinates = Temporal([info]).sketch([gradient])[0]
    assert len(set((coordinates % 128).tolist())) == 64
    assert coordinates.max() > 0.95 * info.numel


def test_sample_depends_on_seed_and_call_alone():
    tensors = [TensorInfo((200, 100)), TensorInfo((20_000,)), TensorInfo((10, 10))]
    draws = Shuffled(tensors, seed=1).draws(7)
    sizes = []
    for indices in draws:
        sizes.append([len(index) for index in indices])
    assert sizes == [[64, 64], [1000], []]
    repeated = Shuffled(tensors, seed=1).draws(7)
    assert all(map(torch.equal, draws[0], repeated[0]))
    assert not torch.equal(draws[0][0], Shuffled(tensors, seed=1).draws(8)[0][0])
    assert not torch.equal(draws[0][0], Shuffled(tensors, seed=2).draws(7)[0][0])


def test_bands_that_a_tensor_does_not_have_are_not_a_power_of_zero():
    spectrum = Contiguous([TensorInfo((400,), n_bands=4), TensorInfo((400,), n_bands=2)])
    shares = spectrum([torch.randn(400), torch.randn(400)])
    relative = spectrum.relative(shares)
    assert_close(relative[0], 4 * shares[0])
    assert_close(relative[1, :2], 2 * shares[1, :2])
    assert relative[1, 2:].isnan().all()


def test_bands_over_time_are_named_by_the_periods_of_their_bins():
    layouts = [("equal", 8), ("equal", 2), ("split", 12)]
    tensors = [TensorInfo((9,), layout=layout, n_bands=n) for layout, n in layouts]
    spectrum = Temporal(tensors, window=32)
    names = spectrum.band_names(tensors[0])
    assert names == ("32+", "11-16", "6.4-8", "4.6-5.3", "3.6-4", "2.9-3.2", "2.5-2.7", "2-2.3")
    assert spectrum.band_names(tensors[1]) == ("4.6+", "2-4")
    assert spectrum.band_names(tensors[2])[:3] == ("mean", "32", "16")
    # a wave of a period is in the band with its name
    wave = torch.cos(2 * torch.pi * torch.arange(64) / 8)
    for t in range(64):
        shares = spectrum([wave[t].expand(9)] * 3)
    assert names[shares[0].argmax()] == "6.4-8"
