"""Hugging Face data sets in all kinds of folders, and on a hub that is out of reach."""

import os
import socket
import time

import pytest
import torch

from famx.data.hub import Hub
from famx.notation import UserError

SPLITS = ("train", "dev", "test")

pytestmark = pytest.mark.usefixtures("hub_cache")


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


@pytest.fixture
def audiofolder(corpus, tmp_path):
    """Returns a function that writes the lines of metadata.csv, for recordings 0.wav, 1.wav, ..."""
    folder = tmp_path / "train"
    folder.mkdir()

    def write(texts):
        for index in range(len(texts)):
            file = corpus.recordings["train"][index].file
            (folder / f"{index}.wav").write_bytes((corpus.folder / file).read_bytes())
        lines = ["file_name,text"]
        lines += [f"{index}.wav,{text}" for index, text in enumerate(texts)]
        (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8-sig")
        return folder / "metadata.csv"

    return write


@pytest.mark.parametrize(
    "texts",
    [
        ["0", "1", "2"],
        ["007", "042", "100"],
        ["true", "false", "true"],
        ["null", "nan", "na", "none", "n a", "NA", "None", "NULL"],
        ["1.50", "2.0", "3"],
        ["007", "seven"],
        ["12345678901234567890", "1", "9" * 5000],
    ],
)
def test_values_of_a_table_are_read_as_they_are_written(texts, audiofolder):
    folder = audiofolder(texts).parent.parent
    assert Hub("train", path=str(folder), normaliser="unicode").texts == texts


def test_edited_table_of_the_same_time_and_size_is_read_anew(audiofolder):
    file = audiofolder(["one", "two"])
    status = file.stat()
    assert Hub("train", path=str(file.parent.parent)).texts == ["one", "two"]
    audiofolder(["six", "ten"])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert Hub("train", path=str(file.parent.parent)).texts == ["six", "ten"]


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_edited_data_file_of_the_same_time_is_read_anew(suffix, corpus, tmp_path):
    import datasets

    # not in the folder, all of whose files are data
    audio = str(corpus.folder / corpus.recordings["train"][0].file)
    file = tmp_path / f"train.{suffix}"

    def write(text):
        table = datasets.Dataset.from_dict({"audio": [audio], "text": [text]})
        getattr(table, f"to_{suffix}")(file)
        os.utime(file, ns=(10**18, 10**18))

    for text in ("one", "two", "one"):
        write(text)
        assert Hub("train", path=str(tmp_path)).texts == [text]


def test_numbers_in_json_lines_are_read_as_they_are_written(audiofolder):
    file = audiofolder(["one", "two", "six", "ten"])
    file.unlink()
    values = ["007", "1.50", "true", '"null"']
    lines = [f'{{"file_name": "{i}.wav", "text": {value}}}' for i, value in enumerate(values)]
    lines[0] = lines[0].replace("007", '"007"')
    file.with_suffix(".jsonl").write_text("\n".join(lines))
    texts = Hub("train", path=str(file.parent.parent), normaliser="unicode").texts
    assert texts == ["007", "1.50", "true", "null"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,text\n0.wav\n", r"line 2 does not have 2 values"),
        ("metadata.csv", "file_name,text\n0.wav,a,b\n", r"line 2 does not have 2 values"),
        ("metadata.csv", "file,text\n0.wav,a\n", r"has no column file_name; .*file"),
        ("metadata.csv", "file_name,text\n", r"the table .* is empty"),
        ("metadata.csv", "file_name,text\na\0b,c\n", r"row 1 has no file name"),
        ("metadata.jsonl", "[" * 100_000, r"cannot be read"),
        ("metadata.jsonl", "3\n", r"line 1 is not an object"),
        ("metadata.txt", "a", r"is a \.txt file; .*\.csv"),
    ],
)
def test_bad_table_is_refused_in_one_sentence(name, content, message, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / name).write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        Hub("train", path=str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["ds[1]", "ds*", "d?", "[!a]"])
def test_folder_with_the_name_of_a_pattern_is_the_folder_that_is_read(name, corpus, tmp_path):
    import datasets

    recording = corpus.recordings["train"][0]
    audio = {"path": None, "bytes": (corpus.folder / recording.file).read_bytes()}
    for folder in (name, "ds1", "ds", "dx", "x"):
        rows = datasets.Dataset.from_dict({"audio": [audio], "text": [folder]})
        (tmp_path / folder).mkdir()
        rows.to_parquet(tmp_path / folder / "train-0000.parquet")
    dataset = Hub("train", path=str(tmp_path / name), normaliser="unicode")
    assert dataset.texts == [name]


@pytest.fixture
def saved_columns(corpus, tmp_path):
    """Returns a function that saves two recordings with their texts, and returns the options."""
    import datasets

    recordings = corpus.recordings["train"][:2]
    audio = [{"path": r.file, "bytes": (corpus.folder / r.file).read_bytes()} for r in recordings]

    def save(texts, feature=None, data_format=None, audio=audio):
        table = datasets.Dataset.from_dict({"audio": audio, "text": texts})
        if feature:
            table = table.cast_column("text", feature)
        folder = tmp_path / "columns"
        datasets.DatasetDict({"train": table.with_format(data_format)}).save_to_disk(folder)
        return {"path": str(folder)}

    return save


@pytest.mark.parametrize("data_format", ["numpy", "torch", "pandas", "arrow"])
def test_format_that_a_data_set_was_saved_in_has_no_effect(data_format, saved_columns):
    assert Hub("train", **saved_columns(["a", "b"], None, data_format)).texts == ["a", "b"]


def test_columns_of_plain_values_are_texts(saved_columns):
    import datasets

    assert Hub("train", **saved_columns([3, 40])).texts == ["3", "40"]
    assert Hub("train", **saved_columns([True, False])).texts == ["true", "false"]
    classes = datasets.ClassLabel(names=["no", "yes"])
    assert Hub("train", **saved_columns([1, 0], classes)).texts == ["yes", "no"]
    assert Hub("train", skip_bad=True, **saved_columns([None, "a"])).texts == ["a"]


def test_columns_that_hold_neither_texts_nor_recordings_are_refused(saved_columns):
    with pytest.raises(UserError, match=r"data\.text=text holds list values, expected texts"):
        Hub("train", **saved_columns([["a"], ["b"]]))
    with pytest.raises(UserError, match=r"data\.audio=audio is a column of List, expected audio"):
        Hub("train", **saved_columns(["a", "b"], audio=[[0.5] * 9] * 2))
    with pytest.raises(UserError, match=r"train\[0\] has no recording"):
        Hub("train", **saved_columns(["a", "b"], audio=[None, None]))
    arrays = [{"array": [0.5] * 9, "sampling_rate": 8000}] * 2
    with pytest.raises(UserError, match=r"data\.audio=audio is a column of"):
        Hub("train", **saved_columns(["a", "b"], audio=arrays))


def test_splits_may_be_sums_of_slices(saved):
    splits = ("train+validation", "test[:50%]+test[50%:]", "test")
    both = Hub("train", **saved, splits=splits)
    assert both.ids == Hub("train", **saved).ids + Hub("dev", **saved).ids
    assert torch.equal(both[12].signal, Hub("dev", **saved)[0].signal)
    assert len(Hub("dev", **saved, splits=splits)) == 12


def test_single_saved_data_set_is_the_split_train(saved, tmp_path):
    import datasets

    datasets.load_from_disk(saved["path"])["train"].save_to_disk(tmp_path / "single")
    path = str(tmp_path / "single")
    assert Hub("train", path=path).ids == Hub("train", **saved).ids
    with pytest.raises(UserError, match=r"has no split 'validation'.*train\[80%:90%\]") as refusal:
        Hub("dev", path=path)
    splits = str(refusal.value).partition("data.splits=[")[2].partition(" divides")[0][:-1]
    assert len(Hub("dev", path=path, splits=tuple(splits.split(",")))) == 1


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
