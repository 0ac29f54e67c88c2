"""Contracts of decoders: certain scores decode to their text, whatever surrounds them."""

from typing import NoReturn

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from famx.contracts import Contract, ContractError, build_for_test, require
from famx.contracts._text_models import CertainText
from famx.data._tokenizers import train_tokenizer
from famx.decode.base import Decoder, FrameDecoder, TextDecoding
from famx.nn.batch import Batch
from famx.nn.encoding import BLANK_ID
from famx.nn.masks import length_mask
from famx.nn.state import DecodeState
from famx.notation import Modality, UserError

BLANK = "<blank>"
END = "<end>"
# repeated letters, which CTC tells apart by a blank, and rows of different lengths
TEXTS = ("abba cab", "cabbb", "a")
# score of the right token; all others are 0, so its probability is 1 to within 1e-7
CERTAIN = 20.0


def decodes_scores_of_frames(part: type[Decoder]) -> None:
    """A decoder of frames also decodes scores that a task has already computed."""
    if part.output != "frames":
        return
    decoder, model, batch = _example(part)
    if not isinstance(decoder, FrameDecoder):
        raise ContractError(f"{part.__name__} decodes frames, but is not a FrameDecoder")
    texts = decoder.decode_scores(*model(batch.inputs, batch.lengths))
    require(texts == decoder(model, batch), "decode_scores gives other texts than a call")


def tokens_make_the_texts(part: type[Decoder]) -> None:
    """A decoder of frames gives the tokens of its texts, which have no blanks among them."""
    decoder, model, batch = _example(part)
    if not isinstance(decoder, FrameDecoder):
        return
    scores, lengths = model(batch.inputs, batch.lengths)
    rows = decoder.decode_tokens(scores, lengths)
    require(all(BLANK_ID not in row for row in rows), "a blank is among the tokens")
    texts = [decoder.text_of(row) for row in rows]
    require(
        texts == decoder.decode_scores(scores, lengths),
        "the texts of the tokens are not those of decode_scores",
    )


def decodes_encodings(part: type[Decoder]) -> None:
    """A decoder of texts also decodes signals that a task has already encoded."""
    if part.output != "text":
        return
    decoder, model, batch = _example(part)
    if not isinstance(decoder, TextDecoding) or not isinstance(model, CertainText):
        raise ContractError(f"{part.__name__} decodes texts, but is not a TextDecoding")
    texts = decoder.decode_encoding(model, model.encode(batch.inputs, batch.lengths))
    require(texts == decoder(model, batch), "decode_encoding gives other texts than a call")


def decodes_certain_scores(part: type[Decoder]) -> None:
    """Scores that leave no doubt decode to their texts: blanks, repeats and padding are handled."""
    decoder, model, batch = _example(part)
    texts = decoder(model, batch)
    require(texts == batch.texts, f"decodes {texts} from certain scores of {batch.texts}")


def rows_are_independent(part: type[Decoder]) -> None:
    """A row decodes to the same text alone and in a batch."""
    decoder, model, batch = _example(part)
    together = decoder(model, batch)
    for i, text in enumerate(together):
        # of as many shards as rows, each is one row
        alone = decoder(model, batch.shard(i, len(together)))
        require(alone == [text], f"row {i} decodes to {alone[0]!r} alone, {text!r} in a batch")


def padding_changes_nothing(part: type[Decoder]) -> None:
    """The texts do not depend on the scores of padding."""
    decoder, model, batch = _example(part)
    texts = decoder(model, batch)
    # as if the padding were certainly a token
    for module in model.modules():
        if isinstance(module, _FrameScores | _NextTokenScores):
            module.padding_score = CERTAIN
    require(decoder(model, batch) == texts, "the texts change with the scores of padding")


def is_deterministic(part: type[Decoder]) -> None:
    """Two calls agree, and leave the global random generator as it is."""
    decoder, model, batch = _example(part)
    # all tokens are equally probable, so that a decoder that samples would show it
    for module in model.modules():
        if isinstance(module, _FrameScores | _NextTokenScores | CertainText):
            module.scale = 0.0
    rng_state = torch.get_rng_state()
    require(decoder(model, batch) == decoder(model, batch), "two calls give different texts")
    require(
        torch.equal(rng_state, torch.get_rng_state()), "draws from torch's global random generator"
    )


class _FrameScores(nn.Module):
    """Scores of frames: the inputs are the ids of the right tokens."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.scale = CERTAIN
        self.padding_score = 0.0

    def forward(
        self, inputs: Tensor, lengths: Tensor, spans: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        scores = self.scale * nn.functional.one_hot(inputs.long(), self.vocab_size).float()
        padding = torch.zeros(self.vocab_size)
        padding[-1] = self.padding_score
        is_real = length_mask(lengths, inputs.shape[1])[..., None]
        return torch.where(is_real, scores, padding), lengths


class _NextTokenScores(nn.Module):
    """Scores of the next token: each id is followed by the next higher one."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.scale = CERTAIN
        self.padding_score = 0.0

    def forward(
        self, inputs: Tensor, lengths: Tensor | None = None, state: DecodeState | None = None
    ) -> tuple[Tensor, None]:
        # the last id is followed by the first
        following = (inputs + 1) % self.vocab_size
        return self.scale * nn.functional.one_hot(following, self.vocab_size).float(), None


def _example(part: type[Decoder]) -> tuple[Decoder, nn.Module, Batch]:
    """Builds a decoder, a model of certain scores for its kind of output, and a batch."""
    tokenizer = train_tokenizer(TEXTS, (BLANK, END) if part.output == "text" else (BLANK,))
    decoder = build_for_test(part, tokenizer=tokenizer, load_run=_no_run)
    vocab_size = tokenizer.get_vocab_size()
    if part.output == "labels":
        return _label_example(part)
    if part.output == "tokens":
        return decoder, _NextTokenScores(vocab_size), _text_batch(tokenizer, vocab_size)

    # frames: each token twice, then a blank (id 0), which separates it from an equal one
    rows = []
    for text in TEXTS:
        frames = [[token, token, 0] for token in tokenizer.encode(text).ids]
        rows.append(torch.tensor(frames).flatten().float())
    batch = Batch(
        ids=list(TEXTS),
        texts=list(TEXTS),
        inputs=nn.utils.rnn.pad_sequence(rows, batch_first=True),
        lengths=torch.tensor([len(row) for row in rows]),
        targets=torch.zeros(len(rows), 0, dtype=torch.long),
        target_lengths=torch.zeros(len(rows), dtype=torch.long),
        spans=None,
        modality=Modality.SPEECH,
    )
    model: nn.Module = _FrameScores(vocab_size)
    if part.output == "text":
        model = CertainText(model, vocab_size, CERTAIN)
    return decoder, model, batch


def _no_run(folder: str) -> NoReturn:
    raise UserError(f"there is no run {folder}")


def _label_example(part: type[Decoder]) -> tuple[Decoder, _FrameScores, Batch]:
    """Returns a decoder of labels, and rows whose frames all score their label."""
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(TEXTS)}))
    rows = [torch.full((4 + i,), float(i)) for i in range(len(TEXTS))]
    batch = Batch(
        ids=list(TEXTS),
        texts=list(TEXTS),
        inputs=nn.utils.rnn.pad_sequence(rows, batch_first=True),
        lengths=torch.tensor([len(row) for row in rows]),
        targets=torch.arange(len(TEXTS))[:, None],
        target_lengths=torch.ones(len(TEXTS), dtype=torch.long),
        spans=None,
        modality=Modality.SPEECH,
    )
    return build_for_test(part, tokenizer=tokenizer), _FrameScores(len(TEXTS)), batch


def _text_batch(tokenizer: Tokenizer, vocab_size: int) -> Batch:
    """Returns rows of rising ids, whose second half is the greedy continuation of the first."""
    # an even number of ids, so that the halves are equal
    size = 2 * (vocab_size // 2)
    rows = (torch.arange(size) + torch.arange(3)[:, None]) % vocab_size
    texts = [tokenizer.decode(row[size // 2 :].tolist()) for row in rows]
    return Batch(
        ids=["0", "1", "2"],
        texts=texts,
        inputs=rows,
        lengths=torch.full((3,), size),
        targets=torch.zeros(3, 0, dtype=torch.long),
        target_lengths=torch.zeros(3, dtype=torch.long),
        spans=None,
        modality=Modality.TEXT,
    )


CONTRACT: tuple[Contract, ...] = (
    decodes_scores_of_frames,
    tokens_make_the_texts,
    decodes_encodings,
    decodes_certain_scores,
    rows_are_independent,
    padding_changes_nothing,
    is_deterministic,
)
ESSENTIAL: tuple[Contract, ...] = (
    rows_are_independent,
    padding_changes_nothing,
    is_deterministic,
)
