"""Normalisation of texts: invisible characters, numbers, and the names of the rules."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.data._example import write_corpus
from famx.data._normalisers import NORMALISERS, normalise_basic, normalise_unicode
from famx.data.manifest import Manifest


@pytest.mark.parametrize("name", NORMALISERS)
@pytest.mark.parametrize(
    "invisible",
    ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u200e", "\ufe0f", "\u034f"],
)
def test_invisible_characters_change_no_word(name, invisible):
    text = f"{invisible}win{invisible}dow{invisible} seat"
    assert NORMALISERS[name](text) == "window seat"


def test_symbols_with_their_marks_are_no_words():
    assert normalise_basic("I \u2764\ufe0f you \u26a0\u0336 1\ufe0f\u20e3 '\u0301") == "i you 1"


def test_numbers_that_are_one_character_do_not_join_their_neighbours():
    assert normalise_basic("1\u00bd") != normalise_basic("11 2")
    assert normalise_basic("10\u00b2") != normalise_basic("102")
    assert normalise_basic("1\u00bd cups of H\u2082O") == "1\u00bd cups of h\u2082o"


def test_compatibility_forms_of_letters_and_digits_become_plain_ones():
    assert normalise_basic("\uff21\uff22\uff11 \ufb01ne \uff76\uff9e") == "ab1 fine \u30ac"


@pytest.mark.parametrize("name", NORMALISERS)
@given(text=st.text(max_size=20))
@settings(deadline=None, max_examples=100)
def test_normalised_text_is_nfc_and_stays_itself(name, text):
    normalised = NORMALISERS[name](text)
    assert unicodedata.is_normalized("NFC", normalised)
    assert NORMALISERS[name](normalised) == normalised
    decomposed = unicodedata.normalize("NFD", text)
    assert NORMALISERS[name](decomposed) == normalised


def test_texts_stay_as_they_are_written_with_the_rule_unicode(tmp_path):
    write_corpus(tmp_path, n_recordings=1)
    (tmp_path / "train.tsv").write_text("anna0.wav\tCafe\u0301,  o\u2019clock!\n", encoding="utf-8")
    dataset = Manifest("train", 0, root=str(tmp_path), normaliser="unicode")
    assert dataset.texts == ["Caf\u00e9, o\u2019clock!"] == [normalise_unicode(dataset.texts[0])]
    assert dataset.normaliser == "unicode"
    assert Manifest("train", 0, root=str(tmp_path)).texts == ["caf\u00e9 o'clock"]


def test_ascii_has_a_shorter_way_to_the_same_text():
    class Other(str):
        """A text that does not take the shorter way."""

        def isascii(self):
            return False

    characters = [chr(code) for code in range(128)]
    texts = [a + b + c for a in "a'. " for b in characters for c in "z'. "]
    for text in texts:
        assert normalise_basic(text) == normalise_basic(Other(text)), repr(text)
