"""Sentences with labels as words, whose ids are hashes: files as those of data=sentences."""

import re
from collections.abc import Sequence
from zlib import crc32

from tokenizers import Tokenizer

from famx.data.sentences import Sentences
from famx.notation import Subwords, UserError
from famx.registry import register

N_WORDS = 2**14
WORD = re.compile(r"\w+|[^\w\s]")


@register
class SentenceWords(Sentences):
    """Sentences as lower-case words and single marks; the id of a word is `crc32(word) mod 2^14`.

    No vocabulary is stored, so that any word has an id (the hashing trick, Weinberger et al. 2009,
    arXiv:0902.2206). Of 5,000 different words, each shares its id with another one with
    probability 0.26. A word that no training sentence has keeps the vector that its id began with,
    or that of the words with the same id.

    Args:
        split: "train", "dev" or "test".
        root: folder of the files.
        train, dev, test: names of the files. With `dev=null`, every tenth line of `train` belongs
            to dev, with `test=null` the line before it to test, and the others to train.
    """

    input_vocab_size = N_WORDS

    @staticmethod
    def encode(sentence: str) -> Sequence[int]:
        """Returns the ids of the words and marks of a sentence."""
        return [crc32(word.encode()) % N_WORDS for word in WORD.findall(sentence.lower())]

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        """Refuses: a hash is not the id of one word, so that no text can be made of ids.

        Raises:
            UserError: always.
        """
        raise UserError(
            "data=sentence_words is for task=classify: its items are hashes of words and a label"
        )
