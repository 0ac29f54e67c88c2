"""`data=text`: its splits, its blocks in each epoch, and its tokens."""

from itertools import pairwise

import pytest

from famx.data.text import Text
from famx.notation import UserError


@pytest.fixture
def alphabet(tmp_path):
    """Returns a file of 1,000 letters, a to z repeated, and one é."""
    file = tmp_path / "a.txt"
    letters = [chr(97 + i % 26) for i in range(1_000)]
    file.write_text("".join(letters) + "é", encoding="utf-8")
    return str(file)


def decode_blocks(dataset):
    tokenizer = dataset.build_tokenizer()
    return [tokenizer.decode(dataset[i].signal.tolist()) for i in range(len(dataset))]


def test_text_is_split_into_eight_tenths_one_tenth_and_one_tenth(alphabet):
    assert len(Text("train", 0, path=alphabet, block=9)) == 88
    dev = decode_blocks(Text("dev", 0, path=alphabet, block=9))
    assert dev[0].startswith(chr(97 + 800 % 26))
    test = decode_blocks(Text("test", 0, path=alphabet, block=9))
    assert test[0].startswith(chr(97 + 900 % 26))


def test_blocks_of_dev_follow_one_another(alphabet):
    blocks = decode_blocks(Text("dev", 0, path=alphabet, block=9))
    assert all(len(block) == 10 for block in blocks)
    # the last id of a block is a target only, and the first input of the next
    assert all(first[-1] == second[0] for first, second in pairwise(blocks))


def test_blocks_of_train_are_sampled_anew_each_epoch(alphabet):
    train = Text("train", 0, path=alphabet, block=9)
    assert train.at(0).ids == train.ids != train.at(1).ids
    assert train.at(1).ids == Text("train", 0, path=alphabet, block=9).at(1).ids


def test_bytes_are_tokens_of_text(alphabet):
    # é is two bytes, so the splits begin one token later
    characters = decode_blocks(Text("dev", 0, path=alphabet, block=9))[0]
    raw = decode_blocks(Text("dev", 0, path=alphabet, unit="bytes", block=9))[0]
    assert raw == characters[1:] + chr(97 + 810 % 26)


def test_tokenizer_of_text_has_its_characters_and_nothing_else(alphabet):
    dataset = Text("train", 0, path=alphabet, block=9)
    assert dataset.build_tokenizer().get_vocab_size() == 27
    for options in ({"vocab_size": 96}, {"special_tokens": ("<blank>",)}):
        with pytest.raises(UserError, match="data=text has one token for each of its chars"):
            dataset.build_tokenizer(**options)


def test_bad_text_files_and_blocks_are_refused(alphabet, tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*nowhere\.txt cannot be read"):
        Text("dev", 0, path=str(tmp_path / "nowhere.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" * 500)
    with pytest.raises(
        UserError,
        match=r"b\.txt is not UTF-8 \(byte 0\); read it with data\.unit=bytes",
    ):
        Text("dev", 0, path=str(tmp_path / "b.txt"))
    with pytest.raises(UserError, match=r"data\.block=100 is more than the 100 tokens of dev"):
        Text("dev", 0, path=alphabet, block=100)
    with pytest.raises(UserError, match=r"data\.block=0 must be at least 1"):
        Text("dev", 0, path=alphabet, block=0)
