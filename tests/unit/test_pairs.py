"""Pairs of texts: their files and tables, the tokens of their sources, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.data.hub_pairs import HubPairs
from famx.data.pairs import Pairs
from famx.data.sentences import Sentences
from famx.notation import UserError
from famx.task.classify import Classify
from famx.task.translate import Translate

END = 1


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return {"root": str(folder)}


def sides(dataset):
    return list(zip(dataset.sources, dataset.texts, strict=True))


def test_columns_are_source_and_target_of_a_number(tmp_path):
    options = write(tmp_path, train="\ufeffa dog\tein  Hund\tx\r\n\n a cat \teine Katze\ty\n")
    assert sides(Pairs("train", **options)) == [("a dog", "ein Hund"), ("a cat", "eine Katze")]
    swapped = Pairs("train", **options, source=2, target=3)
    assert sides(swapped) == [("ein Hund", "x"), ("eine Katze", "y")]


def test_one_file_may_hold_all_splits(tmp_path):
    options = write(tmp_path, all="".join(f"a {i}\tb {i}\n" for i in range(30)))
    options |= {"train": "all.tsv", "dev": None, "test": None}
    by_split = {split: sides(Pairs(split, **options)) for split in ("train", "dev", "test")}
    assert by_split["dev"] == [(f"a {i}", f"b {i}") for i in (9, 19, 29)]
    assert by_split["test"] == [(f"a {i}", f"b {i}") for i in (8, 18, 28)]
    assert len(by_split["train"]) == 24


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a\tb\na dog\n", {}, r"train\.tsv, line 2: expected SOURCE<TAB>TARGET .* 1 columns: 'a d"),
        ("a\tb\na\tb\tc\n", {}, r"line 2: 3 columns, and the first line has 2: a tab"),
        ("a\tb\n\tb\n", {}, r"train\.tsv, line 2: the source is empty; data\.skip_bad=true leaves"),
        ("a\tb\na\t \n", {}, r"train\.tsv, line 2: the target is empty; data\.skip_bad=true"),
        ("a\t!!\n", {"normaliser": "basic"}, r"is empty, '!!' after data\.normaliser=basic"),
        ("\ta\n", {"skip_bad": True}, r"there is no pair with a source and a target"),
        ("\n", {}, r"train\.tsv has too few lines for the split train"),
        ("a\tb\n", {"source": 2}, r"data\.source=2 and data\.target=2 must be the numbers of two"),
        ("a\tb\n", {"target": 3}, r"in the columns 1 and 3, got 2 columns"),
        ("a\tb\n", {"root": ""}, r"data=pairs needs the folder of its files, data\.root=DIR"),
        ("a\tb\n", {"train": "x.tsv"}, r"there is no file .*x\.tsv$"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(text, options, message, tmp_path):
    options = write(tmp_path, train=text) | options
    with pytest.raises(UserError, match=message) as refusal:
        Pairs("train", **options)
    assert "\n" not in str(refusal.value)


def test_missing_file_of_dev_is_refused_with_a_remedy(tmp_path):
    options = write(tmp_path, train="a\tb\n")
    with pytest.raises(UserError, match=r"dev\.tsv; data\.dev=null takes a tenth of train\.tsv"):
        Pairs("dev", **options)


def test_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "train.tsv").write_bytes("é\tb\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.tsv is not UTF-8: .* at byte 0"):
        Pairs("train", root=str(tmp_path))


def test_pairs_with_an_empty_side_may_be_left_out(tmp_path, caplog):
    options = write(tmp_path, train="a\tb\n\tc\nd\t\ne\tf\n")
    assert sides(Pairs("train", **options, skip_bad=True)) == [("a", "b"), ("e", "f")]
    assert "2 of 4 pairs are left out: " in caplog.text
    assert "line 2: the source is empty" in caplog.text


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(*[st.text("abcé ü!", min_size=1).filter(str.strip)] * 2), min_size=1, max_size=8
    ),
    vocab_size=st.sampled_from([0, 12, 40]),
    subwords=st.sampled_from(["bpe", "unigram"]),
)
def test_one_tokenizer_encodes_both_sides_without_loss(
    pairs, vocab_size, subwords, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("pairs")
    options = write(folder, train="".join(f"{a}\t{b}\n" for a, b in pairs))
    dataset = Pairs("train", **options)
    # unigram does not learn from every text
    try:
        tokenizer = Translate.build_tokenizer(dataset, vocab_size, subwords)
    except UserError:
        assert subwords == "unigram" and vocab_size
        return
    dataset.use_tokenizer(tokenizer)
    for index, (source, target) in enumerate(pairs):
        *tokens, end = dataset[index].signal.tolist()
        assert end == END and END not in tokens
        assert dataset.lengths[index] == len(tokens) + 1
        assert tokenizer.decode(tokens) == " ".join(source.split())
        assert tokenizer.decode(tokenizer.encode(dataset[index].text).ids) == " ".join(
            target.split()
        )


def test_unknown_characters_of_a_source_are_counted(tmp_path, caplog):
    options = write(tmp_path, train="ab\tc\n", dev="axb\tc\nxyx\tc\nab\tc\n")
    tokenizer = Translate.build_tokenizer(Pairs("train", **options))
    dev = Pairs("dev", **options)
    dev.use_tokenizer(tokenizer)
    assert (
        "2 of 3 sources of dev have characters that no training text has: 'x' 'y'; the model "
        in (caplog.text)
    )
    # nothing is left but the end
    assert dev[1].signal.tolist() == [END] and dev[0].signal.tolist() == [2, 3, END]


def test_digest_depends_on_both_sides_and_not_on_the_tokenizer(tmp_path):
    text = "a dog\tein Hund\na cat\teine Katze\n"
    dataset = Pairs("train", **write(tmp_path, train=text))
    before = dataset.fingerprint()
    dataset.use_tokenizer(Translate.build_tokenizer(dataset, 30))
    assert dataset.fingerprint() == before
    for changed in (text.replace("dog", "fox"), text.replace("Hund", "Wolf")):
        other = Pairs("train", **write(tmp_path, train=changed)).fingerprint()
        assert {name for name in before if before[name] != other[name]} in (
            {"sources"},
            {"texts"},
        )


def test_tokenizer_of_another_task_is_refused(tmp_path):
    dataset = Pairs("train", **write(tmp_path, train="a\tx\nb\ty\n"))
    for tokenizer in (Classify.build_tokenizer(dataset), dataset.build_tokenizer()):
        with pytest.raises(UserError, match="pairs of texts are data for task=translate"):
            dataset.use_tokenizer(tokenizer)
    sentences = Sentences("train", **Sentences.example(tmp_path))
    with pytest.raises(UserError, match="data=sentences is for task=classify"):
        Translate.build_tokenizer(sentences)


@pytest.fixture
def tables(tmp_path, hub_cache):
    def write_tables(content):
        for split in ("train", "validation", "test"):
            (tmp_path / f"{split}.csv").write_text(content)
        return {"path": str(tmp_path)}

    return write_tables


def test_columns_of_a_table_are_chosen_by_name(tables):
    options = tables('en,de\n"a dog, big",ein Hund\na cat,eine Katze\n')
    dataset = HubPairs("dev", **options, source="de", target="en")
    assert sides(dataset) == [("ein Hund", "a dog, big"), ("eine Katze", "a cat")]
    assert dataset.ids == ["dev-00000", "dev-00001"]


def test_columns_of_mappings_are_read_by_their_keys(tmp_path, hub_cache):
    dataset = HubPairs("train", **HubPairs.example(tmp_path))
    assert sides(dataset)[:2] == [("a train", "niart a"), ("bb train", "niart bb")]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("en,de\na,b\n", {}, r"has no column data\.source=source; .*de, en"),
        ("en,de\na,b\n", {"source": "en", "target": "fr"}, r"no column data\.target=fr; .*de, en"),
        ("source,target\na,b\n,b\n", {}, r", train\[1\]: the source is empty; data\.skip_bad=true"),
        ("source,target\na,\n", {}, r", train\[0\]: the target is empty; data\.skip_bad=true"),
        ("source,target\na,b\n", {"splits": ("train",)}, r"must name three splits"),
        ("source,target\na,b\n", {"path": ""}, r"it needs a data set, data\.path="),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(content, options, message, tables):
    with pytest.raises(UserError, match=message) as refusal:
        HubPairs("train", **tables(content) | options)
    assert "\n" not in str(refusal.value)
