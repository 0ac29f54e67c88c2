"""Fixed shapes of batches: few, full, the same in every epoch, and with little padding."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.data._example import write_corpus
from famx.data.manifest import Manifest
from famx.data.text import Text
from famx.notation import SAMPLE_RATE, UserError
from famx.training.fixed_shapes import choose_shapes, fill_shapes, padded_samples
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig

SPEEDS = np.array([0.9, 1.0, 1.1])
lengths = st.lists(st.integers(1, 600), min_size=1, max_size=120).map(np.array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, n_recordings=40)
    return folder


def build_loader(folder, n_shapes=3, **options):
    dataset = Manifest("train", 0, root=str(folder))
    config = LoaderConfig(batch_seconds=4.0, shapes=n_shapes, **options)
    return Loader(dataset, dataset.build_tokenizer(), 0, config)


def padded_size(batches):
    return sum(len(indices) * shape.samples for indices, shape in batches)


@given(lengths, st.floats(1.0, 3000.0), st.integers(1, 6), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_batches_contain_every_item_once_and_all_but_one_are_full(lengths, budget, n_shapes, seed):
    shapes = choose_shapes(lengths, 1, budget, n_shapes, tokens=7)
    assert 1 <= len(shapes) <= n_shapes
    batches = fill_shapes(lengths, shapes, np.random.default_rng(seed))
    assert sorted(index for indices, _ in batches for index in indices) == list(range(len(lengths)))
    incomplete = []
    for indices, shape in batches:
        assert shape in shapes
        assert shape.tokens == 7
        assert lengths[indices].max() <= shape.samples
        assert shape.rows == 1 or shape.rows * shape.samples <= budget
        assert (shape.rows + 1) * shape.samples > budget
        if len(indices) < shape.rows:
            incomplete.append(shape)
    assert incomplete in ([], [shapes[-1]])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9).map(np.array), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_boundaries_have_the_least_padding(lengths, n_shapes):
    # batches of one example pass nothing on, so that the padded size is that of the boundaries
    shapes = choose_shapes(lengths, 1, 1.0, n_shapes, tokens=0)
    size = padded_size(fill_shapes(lengths, shapes, np.random.default_rng(0)))
    candidates = np.unique(lengths)
    for chosen in itertools.combinations(candidates, min(n_shapes, len(candidates))):
        if chosen[-1] == candidates[-1]:
            assert size <= sum(min(end for end in chosen if end >= length) for length in lengths)


@pytest.mark.parametrize(("spread", "bound"), [(0.2, 0.06), (0.3, 0.07), (0.6, 0.12)])
@pytest.mark.parametrize("budget", [24.0, 200.0])
def test_padding_of_log_normal_lengths_is_bounded(spread, bound, budget):
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.normal(np.log(5.0), spread, 10_000)).clip(0.5, 30.0)
    possible = padded_samples(seconds[:, None], SPEEDS).flatten()
    shapes = choose_shapes(possible, len(SPEEDS), budget * SAMPLE_RATE, 12, tokens=0)
    speed = rng.choice(SPEEDS, len(seconds))
    batches = fill_shapes(padded_samples(seconds, speed), shapes, rng)
    assert 1 - (seconds / speed).sum() * SAMPLE_RATE / padded_size(batches) < bound


def test_padding_is_below_six_percent_for_lengths_as_in_librispeech():
    rng = np.random.default_rng(0)
    is_long = rng.random(28_539) < 0.7
    seconds = np.where(is_long, rng.normal(14.5, 1.2, 28_539), rng.uniform(1.4, 14, 28_539))
    seconds = np.clip(seconds, 1.4, 24.5)
    speeds = np.array(LoaderConfig().speed)
    possible = padded_samples(seconds[:, None], speeds).flatten()
    shapes = choose_shapes(possible, len(speeds), 200.0 * SAMPLE_RATE, 12, tokens=0)
    speed = rng.choice(speeds, len(seconds))
    batches = fill_shapes(padded_samples(seconds, speed), shapes, rng)
    assert 1 - (seconds / speed).sum() * SAMPLE_RATE / padded_size(batches) < 0.06


def test_recording_longer_than_the_budget_is_a_batch_of_one_row():
    seconds = np.array([1.0] * 20 + [40.0])
    shapes = choose_shapes(padded_samples(seconds, np.ones(1)), 1, 10.0 * SAMPLE_RATE, 2, 0)
    assert [shape.rows for shape in shapes] == [9, 1]
    batches = fill_shapes(padded_samples(seconds, np.ones(1)), shapes, np.random.default_rng(0))
    assert [20] in [indices for indices, _ in batches]


def test_recording_longer_than_all_shapes_is_a_batch_of_its_length():
    shapes = choose_shapes(np.array([160, 320]), 1, 640.0, 2, tokens=5)
    batches = fill_shapes(np.array([160, 480, 320]), shapes, np.random.default_rng(0))
    assert batches[-1] == ([1], (1, 480, 5))
    assert sorted(index for indices, _ in batches for index in indices) == [0, 1, 2]


def test_epochs_have_few_shapes_and_every_recording_once(folder):
    loader = build_loader(folder)
    shapes = {(shape.rows, shape.samples) for shape in loader.shapes}
    assert 1 < len(shapes) <= 3
    widths = {shape.tokens for shape in loader.shapes}
    names: dict[int, list[str]] = {0: [], 1: [], 2: []}
    incomplete = dict.fromkeys(names, 0)
    for epoch, _, batch in loader.train_batches():
        if epoch not in names:
            break
        names[epoch] += batch.ids
        if tuple(batch.inputs.shape) not in shapes:
            # the last batch of the longest shape is incomplete
            incomplete[epoch] += 1
            assert batch.inputs.shape[1] == loader.shapes[-1].samples
        assert {batch.targets.shape[1]} == widths
        # padding is zero, and some is always there
        assert batch.padding > 0
        for row, length in zip(batch.inputs, batch.lengths, strict=True):
            assert not row[length:].any()
    for epoch, ids in names.items():
        assert sorted(ids) == sorted(loader.dataset.ids)
        assert incomplete[epoch] <= 1
    texts = [loader.tokenizer.encode(text).ids for text in loader.dataset.texts]
    assert widths == {max(map(len, texts))}


def test_shapes_are_a_function_of_the_data_set_and_the_config(folder):
    loader = build_loader(folder)
    loader.plan(3)
    assert loader.shapes == build_loader(folder).shapes
    assert loader.plan(2) == build_loader(folder).plan(2)
    assert loader.plan(2) != loader.plan(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_is_resumed_at_any_position(folder, workers):
    steps = list(itertools.islice(build_loader(folder).train_batches(1), 8))
    for stop in (0, 5):
        epoch, position, _ = steps[stop]
        resumed = build_loader(folder, workers=workers).train_batches(epoch, position + 1)
        for expected, actual in zip(steps[stop + 1 :], resumed, strict=False):
            assert expected[:2] == actual[:2]
            assert expected[2].ids == actual[2].ids
            for name, tensor in expected[2].tensors.items():
                assert torch.equal(tensor, getattr(actual[2], name))


def test_recordings_that_are_joined_anew_each_epoch_fit_into_the_shapes(folder):
    dataset = Manifest("train", 0, root=str(folder), join=(1, 2))
    config = LoaderConfig(batch_seconds=6.0, shapes=4, speed=[0.9, 1.0])
    loader = Loader(dataset, dataset.build_tokenizer(), 0, config)
    sizes = {shape.samples for shape in loader.shapes}
    for epoch, _, batch in loader.train_batches():
        if epoch == 3:
            break
        assert batch.inputs.shape[1] in sizes


def test_number_of_shapes_depends_on_the_device_unless_it_is_set(folder):
    dataset = Manifest("train", 0, root=str(folder))
    tokenizer = dataset.build_tokenizer()
    assert Loader(dataset, tokenizer).shapes == []
    cuda = torch.device("cuda")
    assert 1 <= len(Loader(dataset, tokenizer, device=cuda).shapes) <= 12
    assert len(Loader(dataset, tokenizer, 0, LoaderConfig(shapes=1)).shapes) == 1


@pytest.mark.parametrize("n_shapes", [0, -1])
def test_number_of_shapes_below_one_is_refused(n_shapes):
    with pytest.raises(UserError, match=rf"loader\.shapes={n_shapes} must be between 1 and 10,000"):
        LoaderConfig(shapes=n_shapes)


def test_full_batches_of_text_have_one_shape():
    loader = Loader(Text("train", 0, block=64), None, config=LoaderConfig(shapes=3))
    assert loader.shapes == []
    sizes = [len(planned.indices) for planned in loader.plan(0)]
    full = max(sizes)
    assert full == loader.config.batch_tokens // 64
    assert sum(size < full for size in sizes) <= 1
    for _, _, batch in itertools.islice(loader.train_batches(), 5):
        if len(batch) == full:
            assert batch.inputs.shape == (full, 65)
