"""The text that each token writes."""

from tokenizers import Tokenizer

from famx.nn.encoding import BLANK_ID
from famx.notation import UserError

WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # mark of subwords that begin a word


def surfaces(tokenizer: Tokenizer) -> list[str]:
    """Returns the text of each token, which a space begins where a word does.

    The blank and special tokens, such as the end of a text, have none.

    Raises:
        UserError: a token has a space after its first character, so that it is no part of a word.
    """
    added = tokenizer.get_added_tokens_decoder()
    without_text = {BLANK_ID, *(token for token, properties in added.items() if properties.special)}
    texts = []
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.id_to_token(token) or ""
        text = "" if token in without_text else text.replace(WORD_MARK, " ")
        if " " in text[1:]:
            raise UserError(f"the tokens must be parts of words, and one is {text!r}")
        texts.append(text)
    return texts
