"""Batches, their order and their augmentation."""

import itertools
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.data._example import write_corpus
from famx.data.manifest import Manifest
from famx.data.text import Text
from famx.notation import Modality, UserError
from famx.training.augmentation import sample_augmentation
from famx.training.buckets import Budget, cut_into_batches, shuffle_in_buckets
from famx.training.loader import Loader
from famx.training.loader_config import SMALL_CORPUS, LoaderConfig, Masks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


lengths = st.lists(st.floats(0.1, 40.0), min_size=1, max_size=200).map(np.array)


@given(lengths, st.integers(1, 40), st.floats(0.5, 300.0), st.integers(1, 300), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_batches_contain_every_item_once_within_all_budgets(
    lengths, n_buckets, seconds, tokens, seed
):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 200, len(lengths)).astype(float)
    order = shuffle_in_buckets(lengths, n_buckets, rng)
    budgets = [Budget(lengths, seconds), Budget(targets, tokens)]
    batches = cut_into_batches(order, *budgets)
    assert [index for batch in batches for index in batch] == order.tolist()
    assert sorted(order) == list(range(len(lengths)))
    for batch in batches:
        for sizes, limit in budgets:
            assert len(batch) == 1 or len(batch) * max(sizes[batch]) <= limit
    # the first item of the next batch would exceed a budget
    for batch, following in itertools.pairwise(batches):
        grown = [*batch, following[0]]
        assert any(len(grown) * max(sizes[grown]) > limit for sizes, limit in budgets)


@pytest.mark.parametrize("budget", [100.0, 400.0])
def test_padding_is_below_five_percent_for_lengths_as_in_librispeech(budget):
    # train-clean-100: 28,539 utterances, most of 12 to 16 s, many short ones, none over 24.5 s
    rng = np.random.default_rng(0)
    is_long = rng.random(28_539) < 0.7
    lengths = np.where(is_long, rng.normal(14.5, 1.2, 28_539), rng.uniform(1.4, 14, 28_539))
    lengths = np.clip(lengths, 1.4, 24.5)
    batches = cut_into_batches(shuffle_in_buckets(lengths, 30, rng), Budget(lengths, budget))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / padded < 0.05


def test_augmentation_is_a_function_of_seed_and_epoch():
    config = LoaderConfig()
    expected = sample_augmentation(config, 3, 5, [1.0] * 200)
    repeated = sample_augmentation(config, 3, 5, [1.0] * 200)
    assert (repeated.speed == expected.speed).all()
    assert (repeated.spans == expected.spans).all()
    for seed, epoch in ((3, 6), (4, 5)):
        changed = sample_augmentation(config, seed, epoch, [1.0] * 200)
        assert (changed.speed != expected.speed).any()
        assert (changed.spans != expected.spans).any()


def test_augmentation_stays_within_its_bounds():
    config = LoaderConfig(time_masks=2, time_width=0.1, mel_masks=3, mel_width=0.3)
    augmentation = sample_augmentation(config, 3, 5, [1.0] * 200)
    assert set(augmentation.speed) == set(config.speed)
    assert (augmentation.spans >= 0).all()
    # a time mask spans all mel bins, a mel mask all of the time
    time_masks = augmentation.spans[:, :2]
    mel_masks = augmentation.spans[:, 2:]
    assert (time_masks[..., 2:] == [0, 1]).all()
    assert (mel_masks[..., :2] == [0, 1]).all()
    # widths, and ends
    assert (time_masks[..., 1] <= 0.1).all()
    assert (time_masks[..., :2].sum(-1) <= 1).all()
    assert (mel_masks[..., 3] <= 0.3).all()
    assert (mel_masks[..., 2:].sum(-1) <= 1).all()


def test_masks_per_second_grow_with_the_recording_and_change_no_other_draw():
    seconds = [0.3, 1.0, 4.0, 12.0]
    without = sample_augmentation(LoaderConfig(time_masks=2), 3, 5, seconds)
    config = LoaderConfig(time_masks_per_second=2.0)
    augmentation = sample_augmentation(config, 3, 5, seconds)
    assert (augmentation.speed == without.speed).all()
    assert (augmentation.spans[:, :4] == without.spans).all()
    further = augmentation.spans[:, 4:]
    assert ((further[..., 1] > 0).sum(1) == [1, 2, 8, 24]).all()
    assert (further[..., :2].sum(-1) <= 1).all() and (further[..., 2:] == [0, 1]).all()
    # a multiple of eight, of which shorter recordings leave some empty
    assert augmentation.spans.shape == (4, 4 + 24, 4)
    assert sample_augmentation(config, 3, 5, seconds[:2]).spans.shape == (2, 4 + 8, 4)


def test_small_corpora_are_masked_more_unless_an_option_of_masks_is_set():
    large = Masks(2, 0.0, 0.05, None, 2, 0.15)
    assert LoaderConfig().masks(SMALL_CORPUS - 1) == Masks(0, 0.75, 0.2, 0.3, 2, 0.3)
    assert LoaderConfig().masks(SMALL_CORPUS - 1, two_views=True).time_masks_per_second == 1.5
    assert LoaderConfig().masks(SMALL_CORPUS) == large
    assert LoaderConfig().masks(SMALL_CORPUS, two_views=True) == large
    for option in ({"mel_width": 0.0}, {"time_seconds": 0.1}, {"time_masks": 3}, {"mel_masks": 2}):
        assert LoaderConfig(**option).masks(1.0) == replace(large, **option)


def test_time_masks_have_a_longest_duration():
    seconds = np.array([0.5, 2.0, 20.0])
    config = LoaderConfig(time_masks=200, time_width=0.2, time_seconds=0.3, mel_masks=0)
    widths = sample_augmentation(config, 3, 5, seconds.tolist()).spans[..., 1]
    longest = (widths * seconds[:, None]).max(1)
    # a fifth of the shortest recording is less
    assert (longest <= np.array([0.1, 0.3, 0.3]) + 1e-6).all()
    assert (longest > np.array([0.09, 0.27, 0.27])).all()


def test_noise_has_the_sampled_signal_to_noise_ratio():
    signal = torch.sin(torch.arange(40_000) / 3)
    noisy = sample_augmentation(LoaderConfig(speed=[1.0], snr=[10.0, 30.0]), 3, 5, [1.0] * 40)
    assert set(noisy.snr) == {10.0, 30.0}
    assert len(set(noisy.noise_seeds)) == 40
    for index in range(40):
        noise = noisy.apply(signal, index) - signal
        ratio = signal.square().mean() / noise.square().mean()
        assert 10 * ratio.log10().item() == pytest.approx(noisy.snr[index], abs=0.2)
        assert torch.equal(noise, noisy.apply(signal, index) - signal)


def test_signal_without_augmentation_stays_equal():
    signal = torch.sin(torch.arange(40_000) / 3)
    augmentation = sample_augmentation(LoaderConfig(speed=[1.0]), 3, 5, [1.0] * 40)
    assert torch.equal(augmentation.apply(signal, 0), signal)


def test_recordings_change_speed_by_the_factor_that_their_batch_was_planned_with(folder):
    dataset = Manifest("train", 0, root=str(folder))
    config = LoaderConfig(batch_seconds=3.0, speed=[0.5, 2.0])
    loader = Loader(dataset, dataset.build_tokenizer(), 0, config)
    factors = dict(zip(dataset.ids, loader._augmentation(0).speed, strict=True))
    seconds = dict(zip(dataset.ids, dataset.lengths, strict=True))
    for epoch, _, batch in loader.train_batches():
        if epoch > 0:
            break
        assert batch.inputs.numel() <= 3.001 * 16_000
        for name, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
            assert length / 16_000 * factors.pop(name) == pytest.approx(seconds[name], abs=1e-3)
    assert not factors


def longer_than(seconds):
    """Returns a task's rule: recordings of at least so many seconds can be learned."""

    def learnable(n_samples, texts):
        assert len(n_samples) == len(texts)
        return (n_samples >= seconds * 16_000).tolist()

    return learnable


@pytest.mark.parametrize("join", [(), (1, 2)])
def test_speeds_leave_recordings_long_enough_for_their_texts(folder, join, caplog):
    dataset = Manifest("train", 0, root=str(folder), join=join)
    config = LoaderConfig(batch_seconds=3.0, speed=[0.8, 1.0, 1.25])
    # recordings have 0.3 to 0.6 s
    loader = Loader(dataset, None, 0, config, learnable=longer_than(0.35))
    default = Loader(dataset, None, 0, config)
    n_changed = 0
    for epoch in range(8):
        view = dataset.at(epoch)
        fits = np.asarray(view.lengths) / loader._augmentation(epoch).speed > 0.35
        can_fit = np.asarray(view.lengths) / 0.8 > 0.35
        assert (fits == can_fit).all()
        # those that fit are as without the rule
        first = default._augmentation(epoch).speed
        unchanged = np.asarray(view.lengths) / first > 0.35
        n_changed += int((~unchanged & can_fit).sum())
        assert (loader._augmentation(epoch).speed == first)[unchanged].all()
    assert n_changed > 0
    if join:
        return
    with caplog.at_level("WARNING"):
        next(loader.train_batches())
    assert "are too short for their texts at some of loader.speed=[0.8, 1.0, 1.25]" in caplog.text


def test_data_of_unreadable_recordings_alone_ends_training(tmp_path, caplog):
    write_corpus(tmp_path, suffix=".flac", n_recordings=3)
    dataset = Manifest("train", 0, root=str(tmp_path), skip_bad=True)
    for file in tmp_path.glob("anna*.flac"):
        file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(UserError, match="none of 3 examples can be read"):
        next(Loader(dataset, None).train_batches())


def test_shards_are_the_rows_of_a_batch_in_its_width(folder):
    dataset = Manifest("train", 0, root=str(folder))
    loader = Loader(dataset, dataset.build_tokenizer(), 0, LoaderConfig(batch_seconds=4.0))
    _, _, batch = next(loader.train_batches())
    shards = [batch.shard(rank, 3) for rank in range(3)]
    assert sorted(name for shard in shards for name in shard.ids) == sorted(batch.ids)
    assert torch.equal(shards[1].inputs, batch.inputs[1::3])
    assert torch.equal(shards[2].spans, batch.spans[2::3])
    assert sum(shard.amount for shard in shards) == pytest.approx(batch.amount)
    moved = shards[0].to("cpu")
    assert moved.texts == batch.texts[::3]
    assert (moved.amount, moved.padding) == (shards[0].amount, shards[0].padding)


def test_amount_of_a_batch_is_in_seconds_or_tokens_without_padding(folder):
    dataset = Manifest("train", 0, root=str(folder))
    batch = next(Loader(dataset, None, 0, LoaderConfig(batch_seconds=4.0)).eval_batches())
    assert batch.amount == pytest.approx(int(batch.lengths.sum()) / 16_000)
    assert batch.padding == pytest.approx(1 - int(batch.lengths.sum()) / batch.inputs.numel())
    assert batch.modality is Modality.SPEECH
    batch = next(Loader(Text("dev", 0, block=64), None).eval_batches())
    assert batch.amount == 65 * len(batch)
    assert batch.modality is Modality.TEXT


@pytest.mark.parametrize("shapes", [None, 3])
@pytest.mark.parametrize("join", [(), (1, 3)])
def test_budget_of_targets_is_in_tokens_of_the_texts(folder, join, shapes):
    dataset = Manifest("train", 0, root=str(folder), join=join)
    for targets in (None, 20):
        config = LoaderConfig(batch_seconds=1000.0, batch_targets=targets, shapes=shapes)
        loader = Loader(dataset, dataset.build_tokenizer(), 0, config)
        batches = itertools.islice(loader.train_batches(), 12)
        sizes = [batch.targets.numel() for *_, batch in batches if len(batch) > 1]
        sizes += [batch.targets.numel() for batch in loader.eval_batches() if len(batch) > 1]
        assert (max(sizes, default=0) > 20) == (targets is None)


@pytest.mark.parametrize(("config", "rows"), [({}, 16), ({"batch_tokens": 12 * 64}, 12)])
def test_budget_of_text_is_in_tokens(config, rows):
    dataset = Text("train", 0, block=64)
    loader = Loader(dataset, None, 0, LoaderConfig(**config))
    for _, _, batch in itertools.islice(loader.train_batches(), 3):
        assert batch.inputs.shape == (rows, 65)
        assert batch.inputs.dtype == torch.int64
        assert batch.spans is None
        assert batch.padding == 0


def test_text_with_unknown_characters_is_refused_by_name(folder):
    tokenizer = Text("dev", 0, unit="chars").build_tokenizer()
    dataset = Manifest("train", 0, root=str(folder))
    dataset.texts[3] = "東京"
    with pytest.raises(
        UserError, match=r"anna3\.wav has characters outside the vocabulary: '京' '東'"
    ):
        Loader(dataset, tokenizer)


class Deadly(Manifest):
    """Recordings whose reader is killed, as by a machine that is out of memory."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_is_reported_in_a_sentence(folder):
    loader = Loader(Deadly("train", 0, root=str(folder)), None, 0, LoaderConfig(workers=1))
    with pytest.raises(UserError, match=r"process that reads ahead has ended .*loader\.workers=0"):
        next(loader.train_batches())
