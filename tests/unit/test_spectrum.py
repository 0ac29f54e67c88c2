import pytest
import torch

from famx.contracts import applicable, contracts
from famx.notation import TensorInfo
from famx.registry import get, names
from famx.spectrum.base import edges
from famx.spectrum.shuffled import Shuffled
from famx.spectrum.temporal import Temporal


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("law", contracts("spectrum"))
@pytest.mark.parametrize("name", names("spectrum"))
def test_keeps_the_laws(name, law):
    part = get("spectrum", name)
    if law in applicable("spectrum", part):
        contracts("spectrum")[law](part)


@pytest.mark.parametrize("layout", ["equal", "log", "split"])
@pytest.mark.parametrize(
    ("n_bins", "n_bands"), [(17, 12), (17, 17), (5, 2), (1, 1), (513, 10), (3, 2)]
)
def test_every_bin_belongs_to_one_band_and_no_band_is_empty(layout, n_bins, n_bands):
    bands = edges(layout, n_bins, n_bands)
    assert [start for start, _ in bands] == [0, *(stop for _, stop in bands[:-1])]
    assert bands[-1][1] == n_bins and len(bands) == n_bands
    assert all(start < stop for start, stop in bands)


def test_bands_begin_where_their_layout_says():
    assert edges("equal", 18, 4) == [(0, 4), (4, 8), (8, 12), (12, 18)]
    assert edges("log", 256, 4) == [(0, 3), (3, 15), (15, 63), (63, 256)]
    assert edges("log", 17, 12)[:3] == [(0, 1), (1, 2), (2, 3)]
    assert edges("split", 18, 5) == [(0, 4), (4, 9), (9, 12), (12, 15), (15, 18)]


def test_the_followed_coordinates_visit_the_columns_alike():
    info = TensorInfo((128, 128))
    gradient = torch.arange(128 * 128).view(128, 128).float()
    followed = Temporal([info]).sketch([gradient])[0]
    assert len(set((followed % 128).tolist())) == 64
    assert followed.max() > 0.95 * info.numel


def test_the_draw_depends_on_seed_and_call_alone():
    tensors = [TensorInfo((200, 100)), TensorInfo((20_000,)), TensorInfo((10, 10))]
    draws = Shuffled(tensors, seed=1).draws(7)
    assert [[len(index) for index in draw] for draw in draws] == [[64, 64], [1000], []]
    assert all(map(torch.equal, draws[0], Shuffled(tensors, seed=1).draws(7)[0]))
    assert not torch.equal(draws[0][0], Shuffled(tensors, seed=1).draws(8)[0][0])
    assert not torch.equal(draws[0][0], Shuffled(tensors, seed=2).draws(7)[0][0])
