import itertools
import logging
import math
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.contracts import applicable, contracts
from famx.data import spoken
from famx.data._audio import read_audio, resample
from famx.data._grammar import RULES
from famx.data._tokenizers import byte_tokenizer, encode, train_tokenizer
from famx.data.base import basic
from famx.data.hub import Hub
from famx.data.manifest import Manifest
from famx.data.spoken import Spoken
from famx.data.text import Text
from famx.notation import UserError
from famx.registry import PARTS, names
from famx.training.loader import Loader, LoaderConfig, augmentation, bucketed, filled

SHARED = Path(__file__).parents[3] / "shared" / "data"
WORDS = RULES["digit"]


def tone(seconds, hertz=440.0, rate=16_000):
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * hertz * time) * np.hanning(len(time))


def corpus(folder, suffix=".wav", per_speaker=12):
    """Three speakers of one split each; a word is a tone."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, speaker in (("train", "anna"), ("dev", "bob"), ("test", "carl")):
        lines = []
        for number in range(per_speaker):
            file = f"{speaker}{number}{suffix}"
            soundfile.write(
                folder / file, tone(0.3 + 0.05 * (number % 7), 300 + 50 * number), 16_000
            )
            lines.append(f"{file}\t{WORDS[number % 10]}\t{speaker}\n")
        (folder / f"{split}.tsv").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))
        datasets.disable_progress_bars()
        yield


def table(folder, split):
    import datasets

    rows = [line.split("\t") for line in (folder / f"{split}.tsv").read_text().splitlines()]
    columns = {
        "sound": [str(folder / path) for path, _, _ in rows],
        "said": [text for _, text, _ in rows],
    }
    return datasets.Dataset.from_dict(columns).cast_column("sound", datasets.Audio(decode=False))


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    import datasets

    path = tmp_path_factory.mktemp("saved")
    splits = {
        name: table(folder, split)
        for name, split in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    datasets.DatasetDict(splits).save_to_disk(path)
    return path


class SmallSpoken(Spoken):
    sizes = {"train": 14, "dev": 3, "test": 3, "unheard": 3}  # noqa: RUF012


@pytest.fixture(scope="module")
def small(folder, saved):
    """Parts by name; those that need a path, with one."""

    def manifest(split, seed):
        return Manifest(split, seed, root=str(folder), join=(2, 3))

    def hub(split):
        return Hub(split, path=str(saved), audio="sound", text="said")

    def text(split, seed):
        return Text(split, seed, block=4096)

    return PARTS["data"] | {"spoken": SmallSpoken, "manifest": manifest, "hub": hub, "text": text}


@pytest.mark.parametrize(
    ("name", "law"),
    [(name, law) for name in names("data") for law in applicable("data", PARTS["data"][name])],
)
def test_law(name, law, small):
    contracts("data")[law](small[name])


lengths = st.lists(st.floats(0.1, 40.0), min_size=1, max_size=200).map(np.array)


@given(lengths, st.integers(1, 40), st.floats(0.5, 300.0), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_batches_hold_every_item_once_and_keep_the_budget(lengths, buckets, budget, seed):
    batches = filled(bucketed(lengths, buckets, np.random.default_rng(seed)), lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        for batch in batches
    )


@pytest.mark.parametrize("budget", [100.0, 400.0])
def test_padding_stays_under_five_percent_on_lengths_like_librispeech(budget):
    rng = np.random.default_rng(0)
    # train-clean-100: 28,539 utterances, most of 12 to 16 s, a long tail of short ones, none over 24.5 s
    lengths = np.clip(
        np.where(
            rng.random(28_539) < 0.7, rng.normal(14.5, 1.2, 28_539), rng.uniform(1.4, 14, 28_539)
        ),
        1.4,
        24.5,
    )
    batches = filled(bucketed(lengths, 30, rng), lengths, budget)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / padded < 0.05


def test_augmentation_is_a_function_of_seed_and_epoch_within_its_bounds():
    config = LoaderConfig(time_masks=2, time_width=0.1, mel_masks=3, mel_width=0.3)
    found = augmentation(config, 3, 5, 200)
    again, other = augmentation(config, 3, 5, 200), augmentation(config, 3, 6, 200)
    assert (found.speed == again.speed).all() and (found.spans == again.spans).all()
    assert (found.speed != other.speed).any() and (found.spans != other.spans).any()
    assert set(found.speed) == set(LoaderConfig().speed)
    time, mel = found.spans[:, :2], found.spans[:, 2:]
    assert (time[..., 1] <= 0.1).all() and (time[..., 2:] == [0, 1]).all()
    assert (mel[..., 3] <= 0.3).all() and (mel[..., :2] == [0, 1]).all()
    assert (
        (time[..., :2].sum(-1) <= 1).all()
        and (mel[..., 2:].sum(-1) <= 1).all()
        and (found.spans >= 0).all()
    )


def test_noise_stays_as_many_decibels_below_a_recording_as_were_drawn():
    signal = torch.sin(torch.arange(40_000) / 3)
    noisy = augmentation(LoaderConfig(speed=[1.0], snr=[10.0, 30.0]), 3, 5, 40)
    assert set(noisy.snr) == {10.0, 30.0} and len(set(noisy.noise)) == 40
    for index in range(40):
        noise = noisy.apply(signal, index) - signal
        below = -10 * (noise.square().mean() / signal.square().mean()).log10()
        assert below.item() == pytest.approx(noisy.snr[index], abs=0.2)
        assert torch.equal(noise, noisy.apply(signal, index) - signal)
    plain = augmentation(LoaderConfig(speed=[1.0]), 3, 5, 40)
    assert torch.equal(plain.apply(signal, 0), signal)


def test_a_recording_is_sped_up_by_the_factor_that_its_batch_was_planned_with(folder):
    dataset = Manifest("train", 0, root=str(folder))
    loader = Loader(
        dataset, dataset.build_tokenizer(), 0, LoaderConfig(batch=3.0, speed=[0.5, 2.0])
    )
    factors = dict(zip(dataset.ids, loader._augment(0).speed, strict=True))
    for _, _, batch in loader.train():
        assert batch.inputs.shape[0] * batch.inputs.shape[1] <= 3.001 * 16_000
        for name, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
            assert (
                abs(length / 16_000 * factors.pop(name) - dataset.lengths[dataset.ids.index(name)])
                < 1e-3
            )
        if not factors:
            break


def test_a_batch_is_dealt_to_ranks_whole_and_in_its_width(folder):
    dataset = Manifest("train", 0, root=str(folder))
    _, _, batch = next(
        Loader(dataset, dataset.build_tokenizer(), 0, LoaderConfig(batch=4.0)).train()
    )
    shards = [batch.shard(rank, 3) for rank in range(3)]
    assert sorted(name for shard in shards for name in shard.ids) == sorted(batch.ids)
    assert torch.equal(shards[1].inputs, batch.inputs[1::3]) and torch.equal(
        shards[2].spans, batch.spans[2::3]
    )
    assert sum(shard.seconds for shard in shards) == pytest.approx(batch.seconds)
    assert shards[0].to("cpu").texts == batch.texts[::3]


def test_the_normaliser_keeps_words_and_apostrophes_alone():
    assert (
        basic("  It\u2019s 'Half'-past\tTEN, o\u2019clock: \ufb01ne\u2026 ")
        == "it's half past ten o'clock fine"
    )
    assert basic("Äpfel, ÉTÉ — 東京!") == "äpfel été 東京"


@given(st.text(st.characters(codec="utf-8"), max_size=40).map(basic), st.text(max_size=30))
@settings(deadline=None, max_examples=60)
def test_tokens_decode_to_what_was_encoded(text, anything):
    tokenizer = train_tokenizer([text, "abc"])
    ids = encode(tokenizer, text, "an utterance")
    assert tokenizer.decode(ids) == text and 0 not in ids and tokenizer.decode([0, *ids, 0]) == text
    assert type(tokenizer).from_str(tokenizer.to_str()).encode(text).ids == ids
    raw = anything.encode(errors="ignore")
    assert byte_tokenizer().encode(raw.decode()).ids == list(raw)
    assert byte_tokenizer().decode(list(raw)) == raw.decode()


def test_characters_outside_the_vocabulary_are_refused_by_name(folder):
    tokenizer = train_tokenizer(["abc"])
    with pytest.raises(UserError, match=r"^clip 7 has characters outside the vocabulary: 'x' 'é'$"):
        encode(tokenizer, "abxéc", "clip 7")
    with pytest.raises(UserError, match=r"anna0\.wav has characters outside the vocabulary"):
        Loader(Manifest("train", 0, root=str(folder)), tokenizer)


@pytest.mark.parametrize(
    ("old", "new"), [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000), (90, 100), (110, 100)]
)
def test_resampling_is_torchaudios(old, new):
    from torchaudio.functional import resample as reference

    signal = torch.randn(5_003)
    torch.testing.assert_close(
        resample(signal, old, new), reference(signal, old, new), atol=2e-5, rtol=1e-5
    )


def test_an_odd_rate_is_resampled_without_a_filter_bank_of_gigabytes():
    assert abs(len(resample(torch.randn(11_127), 11_127, 16_000)) - 16_000) <= 1


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_every_format_reads_as_16_khz_mono(suffix, rate, tmp_path):
    sound = tone(1.0, rate=rate)
    soundfile.write(tmp_path / f"a{suffix}", np.stack([sound, 0.5 * sound], 1), rate)
    found = read_audio(tmp_path / f"a{suffix}").numpy()
    assert abs(len(found) - 16_000) < 1_300
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found)))) ** 2
    assert np.argmax(spectrum) * 16_000 / len(found) == pytest.approx(440, abs=3)
    assert np.abs(found).max() == pytest.approx(0.375, rel=0.05)
    assert torch.equal(read_audio((tmp_path / f"a{suffix}").read_bytes()), torch.from_numpy(found))


def spoil(file, how):
    if how == "undecodable":
        file.write_bytes(b"not audio at all" * 20)
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no samples":
        soundfile.write(file, np.zeros(0), 16_000)
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:8044])
    elif how == "ten hours":
        soundfile.write(file, np.zeros(36_000 * 100, np.int16), 100, subtype="PCM_U8")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("undecodable", r"anna3\.wav cannot be decoded: "),
        ("empty", r"anna3\.wav cannot be decoded: "),
        ("no samples", r"anna3\.wav holds no samples"),
        (
            "cut short",
            r"anna3\.wav is cut short: its header promises 7,200 frames and the file holds 4,000",
        ),
        ("ten hours", r"anna3\.wav is 36,000\.0 s long, over the limit of 40\.0 s"),
    ],
)
def test_bad_audio_is_refused_by_name_or_counted(how, told, tmp_path, caplog):
    root = corpus(tmp_path)
    spoil(root / "anna3.wav", how)
    with pytest.raises(UserError, match=rf"^{told}[^\n]*$"):
        Manifest("train", 0, root=str(root))
    with caplog.at_level(logging.WARNING):
        dataset = Manifest("train", 0, root=str(root), skip_bad=True)
    assert (
        len(dataset) == 11
        and "1 of 12 recordings are left out; the first: anna3.wav" in caplog.text
    )
    assert len(caplog.records) == 1


def test_a_recording_cut_short_is_refused_where_it_is_read_and_one_from_a_pipe_is_whole(tmp_path):
    for suffix in (".wav", ".mp3"):
        soundfile.write(tmp_path / f"a{suffix}", tone(1.0), 16_000)
        whole = (tmp_path / f"a{suffix}").read_bytes()
        with pytest.raises(
            UserError, match=rf"a\{suffix} is cut short: its header promises 16,000 frames"
        ):
            read_audio(whole[: len(whole) // 2], f"a{suffix}")
    sound = (tmp_path / "a.wav").read_bytes()
    for length in (2**32 - 1, 2**31 - 1, 0x7FFFF000):
        piped = sound[:40] + length.to_bytes(4, "little") + sound[44:]
        assert torch.equal(read_audio(piped), read_audio(sound))


@pytest.mark.parametrize("workers", [0, 1])
def test_audio_that_only_decoding_shows_to_be_bad_is_refused_by_name_or_left_out(
    workers, tmp_path, capfd
):
    root = corpus(tmp_path, suffix=".flac")
    whole = (root / "anna3.flac").read_bytes()
    (root / "anna3.flac").write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) // 2))
    config = LoaderConfig(batch=100.0, workers=workers)
    dataset = Manifest("train", 0, root=str(root))
    with pytest.raises(UserError, match=r"^anna3\.flac cannot be decoded: [^\n]*$"):
        next(Loader(dataset, dataset.build_tokenizer(), 0, config).train())
    dataset = Manifest("train", 0, root=str(root), skip_bad=True)
    _, _, batch = next(Loader(dataset, dataset.build_tokenizer(), 0, config).train())
    assert len(batch) == 11 and "anna3.flac" not in batch.ids


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (None, r"there is no manifest .*train\.tsv"),
        ("", r"the manifest .*train\.tsv is empty"),
        ("anna0.wav\tzero\nanna1.wav one\n", r"train\.tsv, line 2: 0 tabs where"),
        (
            "anna0.wav\tzero\nnowhere.wav\tone\n",
            r"train\.tsv, line 2: there is no file .*nowhere\.wav",
        ),
        ("../outside.wav\tzero\n", r"train\.tsv, line 1: \.\./outside\.wav leaves the folder"),
        ("/etc/hostname\tzero\n", r"train\.tsv, line 1: /etc/hostname leaves the folder"),
        (400 * "a" + "\tzero\n", r"train\.tsv, line 1: '.*' is no path"),
        ("a\0.wav\tzero\n", r"train\.tsv, line 1: '.*' is no path"),
        ("link.wav\tzero\n", r"train\.tsv, line 1: link\.wav leaves the folder"),
        ("anna0.wav\t...\n", r"anna0\.wav has no words in its text"),
    ],
)
def test_a_bad_manifest_is_refused_in_one_sentence(manifest, told, tmp_path):
    root = corpus(tmp_path / "corpus", per_speaker=2)
    soundfile.write(tmp_path / "outside.wav", tone(0.3), 16_000)
    (root / "link.wav").symlink_to(tmp_path / "outside.wav")
    (root / "train.tsv").unlink()
    if manifest is not None:
        (root / "train.tsv").write_text(manifest)
    with pytest.raises(UserError, match=rf"{told}[^\n]*$"):
        Manifest("train", 0, root=str(root))


def test_without_a_dev_file_a_tenth_of_train_is_dev(tmp_path):
    root = corpus(tmp_path, per_speaker=30)
    (root / "dev.tsv").unlink()
    splits = {split: Manifest(split, 0, root=str(root)).ids for split in ("train", "dev")}
    assert splits["dev"] == ["anna9.wav", "anna19.wav", "anna29.wav"]
    assert len(splits["train"]) == 27 and not set(splits["train"]) & set(splits["dev"])


def test_joined_utterances_deal_every_recording_of_a_speaker_once_an_epoch(folder, tmp_path):
    lines = [
        line
        for name in ("train", "dev")
        for line in (folder / f"{name}.tsv").read_text().splitlines()
    ]
    (folder / "both.tsv").write_text("\n".join(lines))
    dataset = Manifest("train", 7, root=str(folder), train="both.tsv", join=(3, 5))
    for epoch in (0, 1):
        view = dataset.at(epoch)
        assert sorted(index for group in view._groups for index in group) == list(range(24))
        assert all(3 <= len(group) <= 5 for group in view._groups)
        assert all(len({index // 12 for index in group}) == 1 for group in view._groups)
    assert dataset.at(0).texts != dataset.at(1).texts
    assert (
        dataset.at(1).texts
        == Manifest("train", 7, root=str(folder), train="both.tsv", join=(3, 5)).at(1).texts
    )
    test = Manifest("test", 7, root=str(folder), join=(3, 5))
    assert test.at(4).texts == test.texts and sum(len(text.split()) for text in test.texts) == 12
    with pytest.raises(UserError, match=r"data\.join=\[5, 3\] is not"):
        Manifest("test", 7, root=str(folder), join=(5, 3))


def test_no_sentence_and_no_speaker_of_the_embedded_speech_is_in_two_splits():
    said = spoken.recipe(Spoken.sizes)
    assert len({u.text for u in said}) == len(said) == sum(Spoken.sizes.values())
    speakers = {split: {u[2:] for u in said if u.split == split} for split in Spoken.splits}
    assert {split: len(who) for split, who in speakers.items()} == {
        "train": 75,
        "dev": 10,
        "test": 10,
        "unheard": 4,
    }
    for split in ("dev", "test", "unheard"):
        for _, speed, pitch in speakers[split]:
            for _, heard_speed, heard_pitch in speakers["train"]:
                apart = max(
                    abs(speed - heard_speed) / max(speed, heard_speed),
                    abs(pitch - heard_pitch) / max(pitch, heard_pitch),
                )
                assert apart >= 0.15 and (speed, pitch) != (heard_speed, heard_pitch)
    assert not speakers["dev"] & speakers["test"]
    assert {voice for voice, *_ in speakers["unheard"]} == {"en-GB"} and "en-GB" not in {
        v for v, *_ in speakers["train"]
    }
    words = {
        split: {word for u in said if u.split == split for word in u.text.split()}
        for split in Spoken.splits
    }
    assert words["test"] <= words["train"] and 200 <= len(words["train"]) <= 400
    assert all(text == basic(text) for text in (u.text for u in said))


def test_the_embedded_speech_is_rendered_the_same_again_and_never_from_half_a_cache(
    monkeypatch, tmp_path
):
    first = [SmallSpoken("test")[index].signal for index in range(3)]
    monkeypatch.setenv("FAMX_CACHE", str(tmp_path))
    monkeypatch.setattr(spoken, "_watch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        SmallSpoken("test")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("FAMX_CACHE", str(tmp_path))
    renderers = [threading.Thread(target=SmallSpoken, args=("dev",)) for _ in range(2)]
    for renderer in renderers:
        renderer.start()
    for renderer in renderers:
        renderer.join()
    assert len(list(tmp_path.iterdir())) == 1
    again = SmallSpoken("test")
    assert all(torch.equal(signal, again[index].signal) for index, signal in enumerate(first))
    assert all(0.3 < seconds < 8 for seconds in again.lengths)


def test_a_data_set_of_the_hub_reads_the_same_from_disk_parquet_audiofolder_and_common_voice(
    folder, saved, tmp_path
):
    import datasets

    options = {"audio": "sound", "text": "said"}
    expected = Hub("dev", path=str(saved), **options)
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    for split in ("train", "dev"):
        rows = table(folder, split)
        files = [
            {"path": None, "bytes": Path(sound["path"]).read_bytes()} for sound in rows["sound"]
        ]
        datasets.Dataset.from_dict({"sound": files, "said": rows["said"]}).to_parquet(
            parquet / f"{split}-0000.parquet"
        )
    audiofolder, common_voice = tmp_path / "audiofolder", tmp_path / "voice"
    (common_voice / "clips").mkdir(parents=True)
    for split in ("train", "dev"):
        (audiofolder / split).mkdir(parents=True)
        rows = [line.split("\t") for line in (folder / f"{split}.tsv").read_text().splitlines()]
        for path, _, _ in rows:
            (audiofolder / split / path).write_bytes((folder / path).read_bytes())
            (common_voice / "clips" / path).write_bytes((folder / path).read_bytes())
        told = ["file_name,said", *(f"{path},{text}" for path, text, _ in rows)]
        (audiofolder / split / "metadata.csv").write_text("\n".join(told))
        told = [
            "client_id\tpath\tsentence",
            *(f"{who}\t{path}\t{text}" for path, text, who in rows),
        ]
        (common_voice / f"{split}.tsv").write_text("\n".join(told))
    splits = ("train", "dev", "test")
    voice = {"text": "sentence", "speaker": "client_id", "splits": splits}
    found = [
        Hub("dev", path=str(parquet), splits=("train", "validation", "test"), **options),
        Hub("dev", path=str(audiofolder), splits=splits, text="said"),
        Hub("dev", path=str(common_voice), **voice),
    ]
    for dataset in found:
        assert sorted(dataset.texts) == sorted(expected.texts)
        for index, text in enumerate(dataset.texts):
            if dataset.texts.count(text) == 1:
                assert torch.equal(
                    dataset[index].signal, expected[expected.texts.index(text)].signal
                )
    assert set(found[2].speakers) == {"bob"}
    assert (
        len(Hub("dev", path=str(parquet), splits=("train[:50%]", "train[50%:]", "test"), **options))
        == 6
    )


def test_what_a_data_set_of_the_hub_has_not_is_refused(saved):
    with pytest.raises(UserError, match=r"has no column data\.text=text; .*said"):
        Hub("train", path=str(saved), audio="sound")
    with pytest.raises(UserError, match=r"has no split 'tain'; did you mean train"):
        Hub(
            "train",
            path=str(saved),
            audio="sound",
            text="said",
            splits=("tain", "validation", "test"),
        )
    with pytest.raises(UserError, match=r"needs a data set, data\.path="):
        Hub("train")


def test_without_a_network_a_data_set_of_the_hub_is_refused_at_once(monkeypatch):
    import datasets
    import huggingface_hub

    def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def waits(seconds):
        raise AssertionError("tries again")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", waits)
    for variable in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(variable, raising=False)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    for path in ("openslr/librispeech_asr", "google/fleurs@refs/convert/parquet"):
        with pytest.raises(
            UserError, match=rf"data\.path={path}: it is neither a folder nor .* out of reach$"
        ):
            Hub("train", path=path)


def test_text_is_cut_into_blocks_of_eight_tenths_one_and_one(tmp_path):
    (tmp_path / "a.txt").write_text(
        "".join(chr(97 + i % 26) for i in range(1_000)) + "é", encoding="utf-8"
    )
    splits = {split: Text(split, 0, path=str(tmp_path / "a.txt"), block=9) for split in Text.splits}
    tokenizer = splits["train"].build_tokenizer()
    assert tokenizer.get_vocab_size() == 27
    blocks = [
        tokenizer.decode(splits["dev"][index].signal.tolist())
        for index in range(len(splits["dev"]))
    ]
    assert all(len(block) == 10 for block in blocks) and all(
        a[-1] == b[0] for a, b in pairwise(blocks)
    )
    assert blocks[0].startswith(chr(97 + 800 % 26)) and len(splits["train"]) == 88
    assert tokenizer.decode(splits["test"][0].signal.tolist()).startswith(chr(97 + 900 % 26))
    assert splits["train"].at(0).ids != splits["train"].at(1).ids
    raw = Text("dev", 0, path=str(tmp_path / "a.txt"), unit="bytes", block=9)
    assert raw.build_tokenizer().decode(raw[0].signal.tolist()) == blocks[0][1:] + chr(
        97 + 810 % 26
    )
    with pytest.raises(UserError, match=r"data\.path=.*nowhere\.txt cannot be read"):
        Text("dev", 0, path=str(tmp_path / "nowhere.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" * 500)
    with pytest.raises(
        UserError,
        match=r"b\.txt is not UTF-8 \(byte 0\), so it has to be read with data\.unit=bytes",
    ):
        Text("dev", 0, path=str(tmp_path / "b.txt"))


def test_text_batches_hold_their_budget_in_tokens():
    dataset = Text("train", 0, block=64)
    _, _, batch = next(
        Loader(dataset, dataset.build_tokenizer(), 0, LoaderConfig(batch=12.0 * 64)).train()
    )
    assert (
        batch.inputs.shape == (12, 65) and batch.inputs.dtype == torch.int64 and batch.spans is None
    )
    assert dataset.build_tokenizer().decode(batch.inputs[0].tolist()).isprintable() is not None
    assert batch.padding == 0
    usual = Loader(Text("train", 0), None)
    assert {len(batch.inputs) for _, _, batch in itertools.islice(usual.train(), 3)} == {
        1024 // 128
    }


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_real_recordings_read_with_their_lengths():
    digits = Manifest("test", 0, root=str(SHARED / "fsdd"), test="official_test.tsv", join=(3, 7))
    assert sum(len(text.split()) for text in digits.texts) == 300
    read_speech = Manifest("dev", 0, root=str(SHARED / "libri_dev_clean_half"))
    assert len(read_speech) == 169 and math.isclose(
        len(read_speech[3].signal) / 16_000, read_speech.lengths[3], abs_tol=1e-3
    )
