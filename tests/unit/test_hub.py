"""Hugging Face data sets in all kinds of folders, and on a hub that is out of reach."""

import socket
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from famx.data._example import Recording, write_corpus
from famx.data.hub import Hub
from famx.notation import UserError

SPLITS = ("train", "dev", "test")


class Corpus(NamedTuple):
    folder: Path
    recordings: dict[str, list[Recording]]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return Corpus(folder, write_corpus(folder))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of `save_to_disk`, as the options of Hub."""
    return Hub.example(tmp_path_factory.mktemp("saved"))


def assert_equal(dataset, expected):
    """Asserts that two data sets have the same recordings, in whatever order."""
    assert sorted(dataset.texts) == sorted(expected.texts)
    for index, text in enumerate(dataset.texts):
        if dataset.texts.count(text) == 1:
            signal = expected[expected.texts.index(text)].signal
            assert torch.equal(dataset[index].signal, signal)


def test_parquet_files_are_read(corpus, saved, tmp_path):
    import datasets

    for split in ("train", "dev"):
        recordings = corpus.recordings[split]
        files = [
            {"path": None, "bytes": (corpus.folder / file).read_bytes()}
            for file, _, _ in recordings
        ]
        columns = {"sound": files, "words": [recording.text for recording in recordings]}
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{split}-0000.parquet")
    options = {"path": str(tmp_path), "audio": "sound", "text": "words"}
    # datasets itself calls dev-0000.parquet the split validation
    assert_equal(Hub("dev", **options), Hub("dev", **saved))
    halves = ("train[:50%]", "train[50%:]", "test")
    assert len(Hub("dev", splits=halves, **options)) == 6


def test_audiofolder_is_read(corpus, saved, tmp_path):
    for split in ("train", "dev"):
        (tmp_path / split).mkdir()
        lines = ["file_name,words"]
        for file, text, _ in corpus.recordings[split]:
            (tmp_path / split / file).write_bytes((corpus.folder / file).read_bytes())
            lines.append(f"{file},{text}")
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines))
    dataset = Hub("dev", path=str(tmp_path), splits=SPLITS, text="words")
    assert_equal(dataset, Hub("dev", **saved))


def test_common_voice_is_read(corpus, saved, tmp_path):
    (tmp_path / "clips").mkdir()
    for split in ("train", "dev"):
        lines = ["client_id\tpath\tsentence"]
        for file, text, speaker in corpus.recordings[split]:
            (tmp_path / "clips" / file).write_bytes((corpus.folder / file).read_bytes())
            lines.append(f"{speaker}\t{file}\t{text}")
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines))
    options = {"text": "sentence", "speaker": "client_id", "splits": SPLITS}
    dataset = Hub("dev", path=str(tmp_path), **options)
    assert_equal(dataset, Hub("dev", **saved))
    assert set(dataset.speakers) == {"bob"}


def test_unknown_columns_and_splits_are_refused(saved):
    with pytest.raises(UserError, match=r"has no column data\.text=words; .*text"):
        Hub("train", **saved, text="words")
    with pytest.raises(UserError, match=r"has no split 'tain'; did you mean train"):
        Hub("train", **saved, splits=("tain", "validation", "test"))
    with pytest.raises(UserError, match=r"must name three splits"):
        Hub("train", **saved, splits=("train", "test"))
    with pytest.raises(UserError, match=r"needs a data set, data\.path="):
        Hub("train")


@pytest.mark.parametrize("path", ["openslr/librispeech_asr", "google/fleurs@refs/convert/parquet"])
def test_data_set_on_the_hub_is_refused_at_once_without_a_network(path, monkeypatch):
    import datasets
    import huggingface_hub

    def fail_to_resolve(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def refuse_to_wait(seconds):
        raise AssertionError("retries")

    monkeypatch.setattr(socket, "getaddrinfo", fail_to_resolve)
    monkeypatch.setattr(time, "sleep", refuse_to_wait)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    message = rf"data\.path={path}: it is neither a folder nor .* out of reach$"
    with pytest.raises(UserError, match=message):
        Hub("train", path=path)
