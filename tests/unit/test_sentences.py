"""Labelled sentences: their splits, and the ids of their words."""

from itertools import chain

import pytest

from famx.data.sentence_words import SentenceWords
from famx.data.sentences import Sentences


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "all.tsv").write_text("".join(f"{i % 2}\tline {i}\n" for i in range(50)))
    (tmp_path / "test.tsv").write_text("0\tanother test\n")
    return tmp_path


def lines(folder, split, **files):
    dataset = Sentences(split, root=str(folder), train="all.tsv", **files)
    return [bytes(dataset[i].signal.tolist()).decode() for i in range(len(dataset))]


def test_every_line_of_one_file_is_in_one_split(folder):
    by_split = [lines(folder, split, test=None) for split in ("train", "dev", "test")]
    assert [len(rows) for rows in by_split] == [40, 5, 5]
    assert sorted(chain(*by_split)) == sorted(f"line {i}" for i in range(50))
    assert by_split[1][0] == "line 9" and by_split[2][0] == "line 8"


def test_test_file_takes_no_lines_from_train(folder):
    assert len(lines(folder, "train")) == 45 and lines(folder, "test") == ["another test"]


def test_same_words_have_the_same_ids_in_every_split(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tWho was Galileo ?\nb\tgalileo?\n" * 10)
    (tmp_path / "test.tsv").write_text("a\twas\n")
    train = SentenceWords("train", root=str(tmp_path))
    who, was, galileo, mark = train[0].signal.tolist()
    assert train[1].signal.tolist() == [galileo, mark] and train.lengths[:2] == [4.0, 2.0]
    assert SentenceWords("test", root=str(tmp_path))[0].signal.tolist() == [was]
    assert len({who, was, galileo, mark}) == 4
    assert max(who, was, galileo, mark) < SentenceWords.input_vocab_size
