"""Folders of the hub whose tables name the files of recordings."""

import pytest
from test_hub import SPLITS, assert_equal

from famx.data.hub import Hub
from famx.notation import UserError

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def tables(corpus, tmp_path):
    """Returns a function that writes recordings and a table of each split, as options of Hub."""

    def write(header="path,text,speaker", splits=SPLITS, separator=","):
        for split in splits:
            lines = [header]
            for row in corpus.recordings[split]:
                (tmp_path / row.file).write_bytes((corpus.folder / row.file).read_bytes())
                lines.append(separator.join(row))
            suffix = "csv" if separator == "," else "tsv"
            text = "\n".join(lines).replace(",", separator)
            (tmp_path / f"{split}.{suffix}").write_text(text)
        return {"path": str(tmp_path)}

    return write


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("path,text,speaker", {}),
        ("file_name,text,speaker", {}),
        ("audio,text,speaker", {}),
        ("path,text,speaker", {"audio": "path"}),
        ("recording,text,speaker", {"audio": "recording"}),
    ],
)
def test_folder_with_tables_of_file_names_is_read(header, options, separator, tables, saved):
    path = tables(header, separator=separator)
    # dev.csv is read as the split validation too, as `datasets` names it
    for split in SPLITS:
        dataset = Hub(split, speaker="speaker", **path, **options)
        assert_equal(dataset, Hub(split, **saved))
    assert set(dataset.speakers) == {"carl"}
    assert_equal(Hub("dev", splits=SPLITS, **path, **options), Hub("dev", **saved))


def test_table_without_file_names_is_refused_with_its_columns_and_the_way_out(tables):
    path = tables("recording,words,speaker")
    with pytest.raises(
        UserError, match=r"train\.csv has no column path or file_name or audio; "
    ) as e:
        Hub("train", **path)
    for part in ("recording, speaker, words", "; data.audio names the one of the file names"):
        assert part in str(e.value)
    with pytest.raises(UserError, match=r"no column record; did you mean recording\?.*data\.audio"):
        Hub("train", audio="record", **path)
    with pytest.raises(
        UserError, match=r"has no column data\.text=text; .*recording, speaker, words"
    ):
        Hub("train", audio="recording", **path)


def test_folder_with_the_table_of_one_split_says_how_to_divide_it(tables):
    path = tables(splits=("train",))
    divided = ("train[:80%]", "train[80%:90%]", "train[90%:]")
    with pytest.raises(UserError, match="has no split 'validation'") as refusal:
        Hub("dev", **path)
    assert f"data.splits=[{','.join(divided)}] divides it" in str(refusal.value)
    assert [len(Hub(split, splits=divided, **path)) for split in SPLITS] == [10, 1, 1]


def test_paths_as_pandas_writes_them_are_read(corpus, tmp_path):
    import pandas

    rows = corpus.recordings["train"]
    files = [str(corpus.folder / row.file) for row in rows]
    table = pandas.DataFrame({"path": files, "text": [row.text for row in rows]})
    table.to_parquet(tmp_path / "train.parquet")
    dataset = Hub("train", path=str(tmp_path), audio="path")
    assert dataset.files() == files
    assert len(dataset[0].signal)
