"""Recognises one utterance for a picture: frames of its tokens, posteriors, an alignment."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import pad

from famx.decode._alignment import TokenSpan, align
from famx.decode.base import FrameDecoder
from famx.monitoring.sensitivity import attention_blocks, measure_sensitivity
from famx.nn.batch import Batch
from famx.nn.encoding import BLANK_ID, END_ID, EncoderDecoder, Encoding
from famx.nn.torchaudio import import_torchaudio
from famx.notation import SAMPLE_RATE, Seconds
from famx.task.base import Task

MAX_ROWS = 24  # tokens of a picture of posteriors
PROBABLE = 0.1  # probability in some frame from which on a token is shown
MAX_TOKENS = 128  # rows of an alignment
SPACE = "␣"
# characters that no font shows, and what is shown in their place
VISIBLE = str.maketrans({" ": SPACE, "\n": "↵", "\t": "⇥"})


class FrameMap(NamedTuple):
    """A matrix over the frames of an utterance.

    Args:
        title: what its values are.
        rows: names of the rows.
        values: the matrix; NaN where it is not defined.
        limit: value of the darkest colour; 0 has the palest.
    """

    title: str
    rows: tuple[str, ...]
    values: Float[Tensor, "rows t"]
    limit: float = 1.0


class TimedToken(NamedTuple):
    """A token, and the seconds in which it is emitted."""

    text: str
    start: Seconds
    end: Seconds


class Utterance(NamedTuple):
    """An utterance and what a model made of it.

    Args:
        name: id of the utterance.
        reference, hypothesis: its text, and that of the model.
        signal: samples at 16 kHz.
        tokens: tokens of the hypothesis in their CTC alignment; empty without trained CTC scores.
        maps: posteriors of frames, and the alignment of a decoder of texts.
    """

    name: str
    reference: str
    hypothesis: str
    signal: Float[Tensor, " n"]
    tokens: list[TimedToken]
    maps: list[FrameMap]

    @property
    def seconds(self) -> Seconds:
        """The length of the utterance."""
        return len(self.signal) / SAMPLE_RATE


def recognize_utterance(task: Task, model: nn.Module, batch: Batch) -> Utterance:
    """Passes a batch of one utterance of speech through a model in evaluation mode.

    The maps are, as far as the task has them,

    - the posteriors p(token | frame) of CTC, or p(label | frame) of a classifier,
    - the attention of the decoder to each frame (`famx.monitoring.sensitivity`), the mean over its
      layers, when it predicts each token of the reference,
    - the probability that a transducer emits each token of the reference at each frame.
    """
    scores: Tensor | None = None
    alignment: FrameMap | None = None
    with torch.no_grad():
        if isinstance(model, EncoderDecoder):
            encoding = model.encode(batch.inputs)
            alignment = _alignment(task, model, batch, encoding)
            if task.trains_frames:
                scores = encoding.scores
        elif task.trains_frames:
            scores, _ = model(batch.inputs)
        hypothesis, tokens = _decode(task, model, batch, scores)
    signal = batch.inputs[0].float().cpu()
    maps: list[FrameMap] = []
    timed: list[TimedToken] = []
    if scores is not None:
        frames = scores[0].float().cpu()
        maps.append(_posteriors(frames, task))
        step = len(signal) / SAMPLE_RATE / len(frames)
        timed = _timed(align(frames, tokens), step, task.tokenizer)
    if alignment is not None:
        maps.append(alignment)
    return Utterance(batch.ids[0], batch.texts[0], hypothesis, signal, timed, maps)


def token_names(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, ...]:
    """Returns tokens as they are drawn, with a visible character for a space."""
    is_bytes = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    names = []
    for token in tokens:
        name = tokenizer.id_to_token(token) or ""
        if is_bytes or name.startswith("<0x"):
            name = tokenizer.decode([token])
        names.append(name.translate(VISIBLE))
    return tuple(names)


def text_tokens(batch: Batch) -> Int[Tensor, "1 u"]:
    """Returns the input of a decoder of texts: the beginning and the tokens of the reference."""
    return pad(batch.targets, (1, 0), value=END_ID)


def predicted_names(tokenizer: Tokenizer, batch: Batch) -> tuple[str, ...]:
    """Returns the names of the tokens that follow those of `text_tokens`: the text and its end."""
    return (*token_names(tokenizer, batch.targets[0].tolist()), "end")


def _posteriors(scores: Float[Tensor, "t v"], task: Task) -> FrameMap:
    """Returns the tokens that are probable in some frame, in the order of their best frames."""
    probabilities = scores.softmax(-1).T
    is_label = task.output == "labels"
    best, frames = probabilities.max(1)
    if not is_label:
        best[BLANK_ID] = 0.0
    probable = best.topk(min(MAX_ROWS, len(best))).indices
    probable = probable[best[probable] >= PROBABLE]
    probable = probable[frames[probable].argsort(stable=True)]
    names = token_names(task.tokenizer, probable.tolist())
    if is_label:
        return FrameMap("p(label | frame)", names, probabilities[probable])
    rows = torch.cat([torch.tensor([BLANK_ID]), probable])
    return FrameMap("CTC: p(token | frame)", ("blank", *names), probabilities[rows])


def _decode(
    task: Task, model: nn.Module, batch: Batch, scores: Float[Tensor, "1 t v"] | None
) -> tuple[str, list[int]]:
    """Returns the hypothesis, and its tokens as far as CTC can align them.

    There are none for a label, nor for the text of another decoder that has more tokens than CTC
    can emit.
    """
    decoder = task.decoder
    if task.output == "labels" or scores is None:
        return task.decode(model, batch)[0], []
    if isinstance(decoder, FrameDecoder):
        lengths = torch.tensor([scores.shape[1]], device=scores.device)
        (tokens,) = decoder.decode_tokens(scores, lengths)
        return decoder.text_of(tokens), tokens
    hypothesis = task.decode(model, batch)[0]
    if task.reject(scores.shape[1], hypothesis) is not None:
        return hypothesis, []
    return hypothesis, task.tokenizer.encode(hypothesis).ids


def _timed(spans: Sequence[TokenSpan], step: Seconds, tokenizer: Tokenizer) -> list[TimedToken]:
    """Returns tokens with the seconds of their frames."""
    names = token_names(tokenizer, [span.token for span in spans])
    return [
        TimedToken(name, span.start * step, span.end * step)
        for name, span in zip(names, spans, strict=True)
    ]


def _alignment(
    task: Task, model: EncoderDecoder, batch: Batch, encoding: Encoding
) -> FrameMap | None:
    """Returns the frames that a decoder of texts uses for each token of the reference."""
    assert isinstance(model, nn.Module)
    names = predicted_names(task.tokenizer, batch)
    if task.decoder_kind == "transducer":
        if not batch.targets.numel():
            return None
        values = emission_posteriors(model.text_scores(text_tokens(batch), encoding), batch.targets)
        return FrameMap("transducer: p(token emitted at frame | text)", names[:-1], values)
    # the layers that attend to the frames
    blocks = attention_blocks(model)
    in_decoder = {name: block for name, block in blocks.items() if name.startswith("memory_")}
    maps = measure_sensitivity(
        in_decoder, lambda: model.text_scores(text_tokens(batch), encoding), MAX_TOKENS
    )
    if not maps:
        return None
    shares = torch.stack([block.shares for block in maps.values()]).nanmean(0)
    queries = next(iter(maps.values())).queries
    rows = tuple(names[query] for query in queries.tolist())
    limit = float(shares.nan_to_num().quantile(0.995)) or 1.0
    return FrameMap("attention of the decoder: share of each frame", rows, shares, limit)


@torch.enable_grad()
def emission_posteriors(
    scores: Float[Tensor, "1 t u1 v"], tokens: Int[Tensor, "1 u"]
) -> Float[Tensor, "u t"]:
    """Returns p(token u is emitted at frame t | text, signal) of a transducer; each row sums to 1.

    With z = log p(k | t, u) the log-probabilities of the lattice and L = -log p(text | signal), it
    is -dL / dz[t, u, y_u], since exactly one frame of a path emits each token (Graves 2012).
    """
    log_probs = scores.detach().float().cpu().log_softmax(-1).requires_grad_()
    tokens = tokens.cpu().int()
    loss = import_torchaudio("functional").rnnt_loss(
        log_probs,
        tokens,
        torch.tensor([log_probs.shape[1]], dtype=torch.int32),
        torch.tensor([tokens.shape[1]], dtype=torch.int32),
        blank=BLANK_ID,
        reduction="sum",
        fused_log_softmax=False,
    )
    (gradient,) = torch.autograd.grad(loss, log_probs)
    emitted = torch.arange(tokens.shape[1])
    return -gradient[0, :, emitted, tokens[0].long()].T
