"""Texts, tokenizers, manifests, and the contracts of data sets."""

import itertools
import math
import os
import stat
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.contracts import ContractError, contracts
from famx.data._example import tone, write_corpus
from famx.data._grammar import sentences
from famx.data._normalisers import normalise_basic
from famx.data._tokenizers import byte_tokenizer, encode, train_tokenizer
from famx.data.manifest import Manifest
from famx.data.text import Text
from famx.notation import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
BLANK = ("<blank>",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


def test_normaliser_keeps_letters_digits_and_apostrophes_inside_words():
    text = "  It\u2019s 'Half'-past\tTEN, o\u2019clock: \ufb01ne\u2026 "
    assert normalise_basic(text) == "it's half past ten o'clock fine"
    assert normalise_basic("Äpfel, ÉTÉ — 東京!") == "äpfel été 東京"


# tokenizers


@given(st.text(st.characters(codec="utf-8"), max_size=40).map(normalise_basic))
@settings(deadline=None, max_examples=60)
def test_characters_decode_to_the_encoded_text(text):
    tokenizer = train_tokenizer([text, "abc"], BLANK)
    ids = encode(tokenizer, text, "an utterance")
    assert tokenizer.decode(ids) == text
    # the blank is id 0, no text contains it, and decoding drops it
    assert 0 not in ids
    assert tokenizer.decode([0, *ids, 0]) == text
    restored = type(tokenizer).from_str(tokenizer.to_str())
    assert restored.encode(text).ids == ids


@given(st.text(max_size=30))
@settings(deadline=None, max_examples=60)
def test_byte_ids_are_the_bytes(text):
    encoded = text.encode(errors="ignore")
    tokenizer = byte_tokenizer()
    assert tokenizer.encode(encoded.decode()).ids == list(encoded)
    assert tokenizer.decode(list(encoded)) == encoded.decode()


def test_special_tokens_get_the_first_ids():
    texts = list(itertools.islice(sentences(0), 50))
    for vocab_size in (0, 60):
        tokenizer = train_tokenizer(texts, ("<blank>", "<eos>"), vocab_size)
        assert [tokenizer.id_to_token(i) for i in range(2)] == ["<blank>", "<eos>"]
    assert train_tokenizer(texts).token_to_id("<blank>") is None


def test_subwords_are_as_many_as_requested_and_decode_to_the_text():
    texts = list(itertools.islice(sentences(0), 200))
    tokenizer = train_tokenizer(texts, BLANK, vocab_size=96)
    assert tokenizer.get_vocab_size() == 96
    for text in texts:
        ids = encode(tokenizer, text, "an utterance")
        assert tokenizer.decode(ids) == text
        assert len(ids) < len(text)


def test_word_of_a_million_characters_is_refused_by_subwords_and_read_by_characters():
    word = "ab" * 500_000
    with pytest.raises(UserError, match=r"has a word of 1,000,000 characters; subwords are for"):
        train_tokenizer(["to be", word], vocab_size=30)
    subwords = train_tokenizer(["to be or not to be ab"], vocab_size=30)
    with pytest.raises(UserError, match=r"^a\.wav has a word of 1,000,000 characters"):
        encode(subwords, word, "a.wav")
    # of words, and of characters, there is no limit
    assert encode(subwords, "to be " * 9999, "a.wav")
    assert len(encode(train_tokenizer([word]), word, "a.wav")) == len(word)


def test_characters_outside_the_vocabulary_are_refused_by_name():
    tokenizer = train_tokenizer(["abc"])
    with pytest.raises(UserError, match=r"^clip 7 has characters outside the vocabulary: 'x' 'é'$"):
        encode(tokenizer, "abxéc", "clip 7")


# manifests


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, r"there is no manifest .*train\.tsv"),
        ("", r"the manifest .*train\.tsv is empty"),
        ("anna0.wav\tzero\nanna1.wav one\n", r"train\.tsv, line 2: 0 tabs, expected"),
        (
            "anna0.wav\tzero\nnowhere.wav\tone\n",
            r"train\.tsv, line 2: there is no file .*nowhere\.wav",
        ),
        (400 * "a" + "\tzero\n", r"train\.tsv, line 1: '.*' is not a path"),
        ("a\0.wav\tzero\n", r"train\.tsv, line 1: '.*' is not a path"),
        ("anna0.wav\t...\n", r"anna0\.wav has no words in its text"),
    ],
)
def test_bad_manifest_is_refused_in_one_sentence(manifest, message, tmp_path):
    root = tmp_path / "corpus"
    write_corpus(root, n_recordings=2)
    (root / "train.tsv").unlink()
    if manifest is not None:
        (root / "train.tsv").write_text(manifest)
    with pytest.raises(UserError, match=rf"{message}[^\n]*$"):
        Manifest("train", 0, root=str(root))


@pytest.fixture
def outside(tmp_path):
    """Returns a folder whose recordings are outside of it, behind links or by their path."""
    root = tmp_path / "corpus"
    write_corpus(root, n_recordings=2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    soundfile.write(elsewhere / "a.wav", tone(0.3), 16_000)
    (root / "link.wav").symlink_to(elsewhere / "a.wav")
    (root / "folder").symlink_to(elsewhere)
    return root


OUTSIDE = ["link.wav", "folder/a.wav", "../elsewhere/a.wav", "{elsewhere}/a.wav"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_recordings_outside_of_the_folder_are_read_unless_that_is_off(path, outside):
    elsewhere = outside.parent / "elsewhere"
    path = path.format(elsewhere=elsewhere)
    (outside / "train.tsv").write_text(f"{path}\tzero\n")
    dataset = Manifest("train", 0, root=str(outside))
    assert dataset.files() == [str(elsewhere / "a.wav")]
    with pytest.raises(UserError, match=r"line 1: .*a\.wav|line 1: link\.wav leaves the folder"):
        Manifest("train", 0, root=str(outside), allow_outside=False)


@pytest.mark.parametrize("path", ["link.wav", "folder/a.wav"])
def test_link_of_another_person_is_not_followed(path, outside, monkeypatch):
    (outside / "train.tsv").write_text(f"{path}\tzero\n")
    # the links are not those of the owner of the folder, nor of the user
    folder_owner = os.stat(outside).st_uid
    lstat = os.lstat

    def lstat_of_another(file):
        status = lstat(file)
        if not stat.S_ISLNK(status.st_mode):
            return status
        return os.stat_result((*status[:4], folder_owner + 1, *status[5:]))

    monkeypatch.setattr(os, "lstat", lstat_of_another)
    with pytest.raises(UserError, match=r"by the link .*, which another person has made"):
        Manifest("train", 0, root=str(outside))


@pytest.mark.parametrize("path", ["link.wav", "folder/a.wav"])
def test_link_of_root_is_followed(path, outside, monkeypatch):
    (outside / "train.tsv").write_text(f"{path}\tzero\n")
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    os_stat, os_lstat = os.stat, os.lstat

    def with_owner(status, owner):
        return os.stat_result((*status[:4], owner, *status[5:]))

    def stat_of_user(file, **options):
        return with_owner(os_stat(file, **options), 1234)

    monkeypatch.setattr(os, "stat", stat_of_user)
    monkeypatch.setattr(os, "lstat", lambda file: with_owner(os_lstat(file), 0))
    assert len(Manifest("train", 0, root=str(outside)).ids) == 1


@pytest.fixture
def two_speakers(folder):
    """Options of a manifest of 24 recordings, 12 of each speaker, joined by threes to fives."""
    lines = [(folder / f"{split}.tsv").read_text() for split in ("train", "dev")]
    (folder / "both.tsv").write_text("\n".join(lines))
    return {"root": str(folder), "train": "both.tsv", "join": (3, 5)}


def test_joined_utterances_contain_every_recording_once_an_epoch(two_speakers):
    dataset = Manifest("train", 7, **two_speakers)
    for epoch in (0, 1):
        groups = dataset.at(epoch)._groups
        assert sorted(index for group in groups for index in group) == list(range(24))
        for group in groups:
            assert 3 <= len(group) <= 5
            assert len({index // 12 for index in group}) == 1  # one speaker


def test_training_is_joined_anew_each_epoch(two_speakers):
    dataset = Manifest("train", 7, **two_speakers)
    assert dataset.at(0).texts != dataset.at(1).texts
    assert dataset.at(1).texts == Manifest("train", 7, **two_speakers).at(1).texts


def test_splits_other_than_train_are_joined_the_same_each_epoch(folder):
    dataset = Manifest("test", 7, root=str(folder), join=(3, 5))
    assert dataset.at(4).texts == dataset.texts
    assert sum(len(text.split()) for text in dataset.texts) == 12


def test_joined_utterances_of_a_test_are_those_of_every_seed(folder):
    groups = {}
    for split in ("train", "test"):
        groups[split] = [
            Manifest(split, seed, root=str(folder), join=(3, 5)).ids for seed in (0, 7)
        ]
    assert groups["test"][0] == groups["test"][1]
    assert groups["train"][0] != groups["train"][1]


def test_impossible_join_is_refused(folder):
    with pytest.raises(UserError, match=r"data\.join=\[5, 3\] is not"):
        Manifest("test", 7, root=str(folder), join=(5, 3))


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_real_recordings_have_their_stated_lengths():
    digits = Manifest("test", 0, root=str(SHARED / "fsdd"), test="official_test.tsv", join=(3, 7))
    assert sum(len(text.split()) for text in digits.texts) == 300
    read_speech = Manifest("dev", 0, root=str(SHARED / "libri_dev_clean_half"))
    assert len(read_speech) == 169
    seconds = len(read_speech[3].signal) / 16_000
    assert math.isclose(seconds, read_speech.lengths[3], abs_tol=1e-3)


# contracts


class RepeatsIds(Text):
    def _choose_blocks(self, epoch):
        super()._choose_blocks(epoch)
        self.ids = [str(index) for index in range(len(self.ids))]


class RenamesItems(Text):
    def __getitem__(self, index):
        return super().__getitem__(index)._replace(id="item")


class DependsOnOrder(Text):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.reads = []  # the views of all epochs share it

    def __getitem__(self, index):
        self.reads.append(index)
        example = super().__getitem__(index)
        return example._replace(signal=example.signal + len(self.reads))


class MisstatesLengths(Text):
    def _choose_blocks(self, epoch):
        super()._choose_blocks(epoch)
        self.lengths = [length + 1 for length in self.lengths]


class ReadsFloats(Text):
    def __getitem__(self, index):
        example = super().__getitem__(index)
        return example._replace(signal=example.signal.float())


class NamesNoOption(Text):
    path_options = ("file",)


@pytest.mark.parametrize(
    ("part", "contract", "message"),
    [
        (RepeatsIds, "splits_disjoint", "0 is in train and in dev"),
        (RenamesItems, "items_match_columns", "the data set lists"),
        (DependsOnOrder, "items_independent_of_order", "depends on what was read before it"),
        (DependsOnOrder, "resume_exact", "has different inputs"),
        (MisstatesLengths, "lengths_match_items", "is 16.0 tokens long, not 17.0"),
        (ReadsFloats, "items_match_modality", "torch.float32"),
        (NamesNoOption, "options_exist", "file is no hyperparameter of NamesNoOption"),
    ],
)
def test_contract_reports_a_broken_data_set(part, contract, message):
    with pytest.raises(ContractError, match=message):
        contracts("data")[contract](part)


def test_signals_of_speech_are_floats_within_one(folder):
    dataset = Manifest("train", 0, root=str(folder))
    signal = dataset[0].signal
    assert signal.dtype == torch.float32
    assert 0.4 < signal.abs().max() <= 1
