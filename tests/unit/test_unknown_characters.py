"""Characters of dev and test that no training text has: counted, scored as errors, or skipped."""

import logging

import pytest

from famx.data._example import write_corpus
from famx.data._tokenizers import encode, train_tokenizer
from famx.data.manifest import Manifest
from famx.notation import UserError
from famx.training.loader import Loader


@pytest.fixture
def folder(tmp_path):
    write_corpus(tmp_path, n_recordings=4)
    (tmp_path / "train.tsv").write_text("anna0.wav\tab\nanna1.wav\tba\n")
    lines = ["bob0.wav\tab", "bob1.wav\ta\u00e9 b", "bob2.wav\t\u00e9\u00e9"]
    (tmp_path / "dev.tsv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def loader_of(folder, split, **options):
    tokenizer = Manifest("train", 0, root=str(folder)).build_tokenizer(0, ("<blank>",))
    return Loader(Manifest(split, 0, root=str(folder), **options), tokenizer, split=split)


@pytest.mark.parametrize("vocab_size", [0, 30])
def test_space_outside_the_vocabulary_is_named(vocab_size):
    tokenizer = train_tokenizer(["ab", "ba"], ("<blank>",), vocab_size)
    if vocab_size:
        # subwords mark the words themselves
        assert tokenizer.decode(encode(tokenizer, "a b", "clip")) == "a b"
    else:
        with pytest.raises(UserError, match=r"outside the vocabulary: ' ' \(space\)$"):
            encode(tokenizer, "a b", "clip")


def test_unknown_characters_are_counted_by_split_and_stay_in_the_references(folder, caplog):
    caplog.set_level(logging.WARNING, "famx")
    loader = loader_of(folder, "dev")
    [message] = caplog.messages
    assert "2 of 3 texts of dev have characters that no training text has: ' ' (space)" in message
    assert "bob1.wav; these 4 characters are counted as errors" in message
    [batch] = loader.eval_batches()
    targets = dict(zip(batch.texts, batch.target_lengths.tolist(), strict=True))
    assert targets == {"ab": 2, "a\u00e9 b": 2, "\u00e9\u00e9": 0}


def test_examples_with_unknown_characters_are_skipped_with_skip(folder, caplog):
    caplog.set_level(logging.WARNING, "famx")
    [batch] = loader_of(folder, "dev", unknown="skip").eval_batches()
    assert batch.texts == ["ab"]
    assert "skipped (data.unknown=skip)" in caplog.text


def test_unknown_characters_are_refused_with_error_and_in_training(folder):
    with pytest.raises(UserError, match=r"^2 of 3 texts of dev have .*'\u00e9'.*bob1\.wav"):
        loader_of(folder, "dev", unknown="error")
    tokenizer = train_tokenizer(["a"], ("<blank>",))
    with pytest.raises(UserError, match=r"^anna0\.wav has characters outside the vocabulary: 'b'$"):
        Loader(Manifest("train", 0, root=str(folder)), tokenizer)


def test_split_without_a_known_text_is_refused_where_unknown_ones_are_skipped(folder):
    (folder / "dev.tsv").write_text("bob0.wav\tc\n")
    with pytest.raises(UserError, match=r"none remains with data\.unknown=skip$"):
        loader_of(folder, "dev", unknown="skip")
    [batch] = loader_of(folder, "dev").eval_batches()
    assert batch.target_lengths.tolist() == [0]
