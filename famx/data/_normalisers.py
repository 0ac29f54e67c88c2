"""Normalisation of the texts of recordings: the rules by their names."""

import functools
import importlib.metadata
import unicodedata
from collections.abc import Callable
from typing import Literal

from famx.notation import UserError

RIGHT_QUOTE = "\N{RIGHT SINGLE QUOTATION MARK}"
# characters of Unicode's property Default_Ignorable_Code_Point outside of the category Cf
INVISIBLE = frozenset(
    chr(code_point)
    for first, last in (
        (0x034F, 0x034F),  # combining grapheme joiner
        (0x115F, 0x1160),  # fillers of Hangul
        (0x17B4, 0x17B5),  # inherent vowels of Khmer
        (0x180B, 0x180F),  # variation selectors of Mongolian
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),  # variation selectors
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for code_point in range(first, last + 1)
)


# an ASCII character -> what it becomes in a word
ASCII_WORDS = {
    code: chr(code).lower() if chr(code).isalnum() or chr(code) == "'" else " "
    for code in range(128)
}


def normalise_basic(text: str) -> str:
    """Normalises a text to lower-case words of letters, digits and apostrophes.

    Compatibility forms become the plain characters (NFKC), such as ligatures; but numbers such as
    ½ and ² stay, since `1½` would become 11⁄2. Invisible characters, such as a zero-width space or
    a soft hyphen, are removed. Everything else separates words.
    """
    # nothing below is needed for ASCII, which is most of what is read
    if text.isascii():
        return _join_words(text.translate(ASCII_WORDS))
    characters = []
    for character in unicodedata.normalize("NFC", remove_invisible(text)):
        is_number = unicodedata.category(character) == "No"
        characters.append(character if is_number else unicodedata.normalize("NFKC", character))
    lower = unicodedata.normalize("NFC", "".join(characters).lower().replace(RIGHT_QUOTE, "'"))
    # letters, their marks and numbers stay; a mark of another character goes with it
    allowed = [" "]
    for character in lower:
        category = unicodedata.category(character)[0]
        in_word = character == "'" or category in "LN"
        if category == "M":
            in_word = allowed[-1] not in " '"
        allowed.append(character if in_word else " ")
    return _join_words("".join(allowed))


def _join_words(text: str) -> str:
    """Joins the words of a text, without apostrophes at their ends, by single spaces."""
    words = [word.strip("'") for word in text.split()]
    return " ".join(word for word in words if word)


def normalise_unicode(text: str) -> str:
    """Normalises the code points of a text alone: NFC, nothing invisible, single spaces."""
    return " ".join(unicodedata.normalize("NFC", remove_invisible(text)).split())


def remove_invisible(text: str) -> str:
    """Removes characters that have no width: format characters and variation selectors."""
    # enclosing marks draw a frame around a character, as in the emoji of a key
    return "".join(
        character
        for character in text
        if character not in INVISIBLE and unicodedata.category(character) not in ("Cf", "Me")
    )


def normalise_spaces(text: str) -> str:
    """Joins the words of a text by single spaces, and changes nothing else."""
    return " ".join(text.split())


def normalise_english(text: str) -> str:
    """Normalises an English text by Whisper's published rules (arXiv:2212.04356, appendix C).

    Lower case; what is in brackets, and words such as `uh`, are removed; contractions and titles
    are written out, numbers are digits, and the spelling is American.

    Raises:
        UserError: the package of these rules is not installed.
    """
    return str(_whisper_rules()(text)).strip()


@functools.cache
def _whisper_rules() -> Callable[[str], str]:
    try:
        # imported late: an extra, whose table of spellings is read here
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError(
            "data.normaliser=english needs the package whisper-normalizer: "
            "pip install 'famx[english]'"
        ) from error
    return EnglishTextNormalizer()


Normaliser = Literal["none", "basic", "unicode", "english"]

NORMALISERS: dict[str, Callable[[str], str]] = {
    "none": normalise_spaces,
    "basic": normalise_basic,
    "unicode": normalise_unicode,
    "english": normalise_english,
}
DESCRIPTIONS = {
    "none": "as written",
    "basic": "lower case, without punctuation",
    "unicode": "as written, in NFC",
    "english": "Whisper's rules for English",
}
RULES_VERSION = "1"  # of the rules in this file


def normaliser_version(name: str) -> str:
    """Returns the version of a normaliser; scores of unlike versions are never compared."""
    if name != "english":
        return RULES_VERSION
    return f"whisper-normalizer {importlib.metadata.version('whisper-normalizer')}"
