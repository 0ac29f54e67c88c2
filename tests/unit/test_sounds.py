"""Noise and rooms from folders: levels, alignment, what is sampled, and bad folders."""

import itertools
import shutil

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.config.text_options import LOADER_TEXTS
from famx.data._example import write_corpus
from famx.data.manifest import Manifest
from famx.notation import UserError
from famx.training.augmentation import sample_augmentation
from famx.training.loader import Loader
from famx.training.loader_config import NOISE_SNR, LoaderConfig
from famx.training.sounds import SoundFolder, add_noise, reverberate, rms, sounds_of

RNG = np.random.default_rng(0)
SPEECH = torch.from_numpy(RNG.standard_normal(4000).astype(np.float32)) * 0.1


def write_noise(folder):
    """Writes three noises, one of them in a subfolder, and a file that is none."""
    (folder / "street").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name, n_samples, rate in (
        ("hum.wav", 1000, 16_000),
        ("street/cars.flac", 40_000, 16_000),
        ("wind.wav", 8000, 8000),
    ):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(n_samples), rate)
    (folder / "LICENSE").write_text("free")
    return folder


def write_rooms(folder):
    """Writes two impulse responses, which decay after a direct path at another position."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number, direct_path in enumerate((3, 200)):
        response = rng.standard_normal(3000) * np.exp(-np.arange(3000) / 400) * 0.1
        response[direct_path:] = response[: 3000 - direct_path].copy()
        response[:direct_path] = 0
        response[direct_path] = 0.9
        soundfile.write(folder / f"room{number}.wav", response, 16_000)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    write_noise(folder / "noise")
    write_rooms(folder / "rooms")
    write_corpus(folder / "speech")
    return folder


@pytest.fixture
def config(folder):
    return LoaderConfig(
        batch_seconds=2.0, noise=str(folder / "noise"), rooms=str(folder / "rooms"), workers=0
    )


def snr_of(signal, noise):
    return 20 * (rms(signal) / rms(noise)).log10().item()


def test_recorded_noise_has_the_sampled_ratio_to_the_signal(folder):
    config = LoaderConfig(speed=[1.0], noise=str(folder / "noise"), noise_probability=1.0)
    augmentation = sample_augmentation(config, 3, 5, [1.0] * 60, sounds=sounds_of(config))
    assert set(augmentation.snr) == set(NOISE_SNR)
    assert set(augmentation.noise) == {0, 1, 2}
    for index in range(60):
        mixed = augmentation.apply(SPEECH, index)
        ratio = snr_of(SPEECH, mixed - SPEECH)
        assert ratio == pytest.approx(augmentation.snr[index], abs=0.01)
        assert torch.equal(mixed, augmentation.apply(SPEECH, index))


def test_ratios_that_are_set_replace_the_defaults(folder):
    config = LoaderConfig(snr=[3.0], noise=str(folder / "noise"), noise_probability=0.3)
    augmentation = sample_augmentation(config, 3, 5, [1.0] * 2000, sounds=sounds_of(config))
    is_noisy = augmentation.noise >= 0
    assert (augmentation.snr[is_noisy] == 3.0).all()
    # those without noise have an infinite ratio, and stay as they are
    assert np.isinf(augmentation.snr[~is_noisy]).all()
    assert is_noisy.mean() == pytest.approx(0.3, abs=0.04)


@given(st.integers(1, 300), st.integers(0, 600))
@settings(deadline=None, max_examples=60)
def test_short_noise_is_repeated(n_noise, n_missing):
    n_signal = n_noise + n_missing
    noise = torch.arange(1, n_noise + 1).float()
    expected = noise.repeat(n_signal // n_noise + 1)[:n_signal]
    added = add_noise(torch.ones(n_signal), noise, 20.0, np.random.default_rng(0)) - 1
    torch.testing.assert_close(added, expected / rms(expected) / 10, atol=1e-5, rtol=1e-4)


def test_parts_of_a_long_noise_begin_anywhere():
    noise = torch.arange(1, 51).float()
    starts = set()
    for seed in range(300):
        added = add_noise(torch.ones(40), noise, 0.0, np.random.default_rng(seed)) - 1
        # neighbours differ by the factor of the noise
        starts.add(round((added[0] / added.diff().mean()).item()))
    assert starts == set(range(1, 12))


def test_a_silent_part_of_a_noise_adds_nothing():
    signal = add_noise(SPEECH, torch.zeros(9000), 5.0, np.random.default_rng(0))
    assert torch.equal(signal, SPEECH)


@given(st.integers(1, 400), st.integers(2, 400), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_rooms_equal_the_plain_convolution_from_the_direct_path_on(n_signal, n_response, seed):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(n_signal).astype(np.float32)
    response = rng.standard_normal(n_response).astype(np.float32)
    direct_path = np.abs(response).argmax()
    expected = np.convolve(signal.astype(np.float64), response)[direct_path:][:n_signal]
    expected *= np.sqrt((signal**2).mean() / (expected**2).mean())
    actual = reverberate(torch.from_numpy(signal), torch.from_numpy(response))
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-5 * np.abs(expected).max())


def test_a_room_of_a_direct_path_alone_changes_nothing():
    response = torch.zeros(700)
    response[123] = -0.3
    torch.testing.assert_close(reverberate(SPEECH, response), -SPEECH, atol=1e-6, rtol=1e-5)


def test_rooms_come_before_noise_and_after_the_speed(folder):
    options = {"speed": [0.8], "noise": str(folder / "noise"), "rooms": str(folder / "rooms")}
    config = LoaderConfig(**options, noise_probability=1.0, room_probability=1.0)
    both = sample_augmentation(config, 0, 0, [1.0] * 9, sounds=sounds_of(config))
    config = LoaderConfig(speed=[0.8])
    alone = sample_augmentation(config, 0, 0, [1.0] * 9)
    for index in range(9):
        slower = alone.apply(SPEECH, index)
        room = SoundFolder("loader.rooms", str(folder / "rooms"), 0)[int(both.room[index])]
        inside = reverberate(slower, room)
        assert len(inside) == len(slower) == 5000
        assert rms(inside) == pytest.approx(rms(slower).item(), rel=1e-4)
        mixed = both.apply(SPEECH, index)
        assert snr_of(inside, mixed - inside) == pytest.approx(both.snr[index], abs=0.01)


def test_choices_are_a_function_of_seed_and_epoch_and_change_no_other_draw(config):
    sounds = sounds_of(config)
    expected = sample_augmentation(config, 3, 5, [1.0] * 200, sounds=sounds)
    repeated = sample_augmentation(config, 3, 5, [1.0] * 200, sounds=sounds)
    plain = sample_augmentation(LoaderConfig(), 3, 5, [1.0] * 200)
    for name in ("noise", "room", "snr", "noise_seeds"):
        assert (getattr(repeated, name) == getattr(expected, name)).all()
    for name in ("speed", "spans", "noise_seeds"):
        assert (getattr(plain, name) == getattr(expected, name)).all()
    for seed, epoch in ((3, 6), (4, 5)):
        changed = sample_augmentation(config, seed, epoch, [1.0] * 200, sounds=sounds)
        assert (changed.noise != expected.noise).any()
        assert (changed.room != expected.room).any()


def read(folder, config, epoch=0, skip=0, n_steps=8):
    dataset = Manifest("train", 0, root=str(folder / "speech"))
    loader = Loader(dataset, dataset.build_tokenizer(), 0, config)
    return list(itertools.islice(loader.train_batches(epoch, skip), n_steps))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_with_the_same_samples(folder, config, workers):
    steps = read(folder, config)
    config.workers = workers
    for number in (1, 4):
        epoch, position, _ = steps[number]
        resumed = read(folder, config, epoch, position + 1, 3)
        for (_, _, batch), (_, _, expected) in zip(resumed, steps[number + 1 :], strict=False):
            assert torch.equal(batch.inputs, expected.inputs)


def test_evaluation_and_unset_options_read_no_folder(folder):
    plain = LoaderConfig(batch_seconds=2.0)
    missing = LoaderConfig(batch_seconds=2.0, noise="missing")
    dataset = Manifest("train", 0, root=str(folder / "speech"))
    batches = [
        list(Loader(dataset, None, 0, options).eval_batches()) for options in (plain, missing)
    ]
    for batch, expected in zip(*batches, strict=True):
        assert torch.equal(batch.inputs, expected.inputs)
    with pytest.raises(UserError, match=r"loader\.noise=missing does not exist, expected a folder"):
        next(Loader(dataset, None, 0, missing).train_batches())


def test_folders_without_recordings_are_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.txt").write_text("no recording")
    for name, problem in (
        ("file", "is a file, expected a folder"),
        ("empty", "is a folder without files"),
        ("texts", "none of 1 recordings can be used; .*readme.txt cannot be decoded"),
    ):
        with pytest.raises(UserError, match=rf"loader\.rooms=.*{name}:? {problem}"):
            sounds_of(LoaderConfig(rooms=str(tmp_path / name)))


@pytest.mark.parametrize("skip_bad", [False, True])
def test_silent_noise_ends_training_in_a_sentence(folder, tmp_path, skip_bad, caplog):
    soundfile.write(tmp_path / "silent.wav", np.zeros(5000), 16_000)
    config = LoaderConfig(noise=str(tmp_path), noise_probability=1.0)
    dataset = Manifest("train", 0, root=str(folder / "speech"), skip_bad=skip_bad)
    loader = Loader(dataset, None, 0, config)
    with pytest.raises(UserError, match=r"loader\.noise=.*silent\.wav is silent: .*; remove it"):
        next(loader.train_batches())
    # the recordings of speech are not at fault
    assert "left out" not in caplog.text


def test_digest_is_that_of_names_and_contents(folder, tmp_path):
    first = SoundFolder("loader.noise", str(folder / "noise"), 0)
    shutil.copytree(folder / "noise", tmp_path / "moved")
    moved = SoundFolder("loader.noise", str(tmp_path / "moved"), 0)
    assert moved.fingerprint() == first.fingerprint()
    assert torch.equal(moved[1], first[1])
    soundfile.write(tmp_path / "moved" / "hum.wav", RNG.standard_normal(1000) / 9, 16_000)
    changed = SoundFolder("loader.noise", str(tmp_path / "moved"), 0)
    assert changed.fingerprint() != first.fingerprint()
    (tmp_path / "moved" / "hum.wav").rename(tmp_path / "moved" / "last.wav")
    renamed = SoundFolder("loader.noise", str(tmp_path / "moved"), 0)
    assert renamed.fingerprint() != changed.fingerprint()


def test_paths_of_the_loader_stay_as_they_are_typed():
    assert {f"loader.{option}" for option in LoaderConfig.path_options} == set(LOADER_TEXTS)
