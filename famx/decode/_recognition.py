"""Recognition of one recording of any length by a decoder of frames, with times."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from famx.decode._alignment import align, character_times, word_times
from famx.decode._surfaces import surfaces
from famx.decode._transcript import Timestamps, Transcript
from famx.decode._windows import FrameStep, cut_at_blanks, windowed_scores
from famx.decode.base import FrameDecoder
from famx.notation import Seconds


@torch.inference_mode()
def recognize(
    model: nn.Module,
    decoder: FrameDecoder,
    signal: Float[Tensor, " n"],
    step: FrameStep,
    window: Seconds,
    timestamps: Timestamps | None = None,
) -> Transcript:
    """Recognises a recording: windows of scores, their pieces between blanks, then one text.

    Args:
        signal: samples at 16 kHz.
        step: step between the frames of the model.
        window: seconds that pass the model at once, and that are decoded at once.
        timestamps: which times the transcript has; None for none.
    """
    scores = windowed_scores(model, signal, step, window)
    limit = max(2, int(window / step.seconds) * step.frames)
    pieces = cut_at_blanks(scores, limit)
    lengths = torch.tensor([len(piece) for piece in pieces], device=scores.device)
    rows = decoder.decode_tokens(pad_sequence(pieces, batch_first=True), lengths)
    text = decoder.text_of([token for row in rows for token in row])
    if timestamps is None:
        return Transcript(text)
    # the frames of each piece follow those of the pieces before
    spans = []
    offset = 0
    for piece, row in zip(pieces, rows, strict=True):
        for span in align(piece, row):
            start = offset + span.start
            spans.append(span._replace(start=start, end=offset + span.end))
        offset += len(piece)
    texts = surfaces(decoder.tokenizer)
    characters = character_times(spans, texts, step.frames, step.seconds)
    if timestamps == "word":
        return Transcript(text, word_times(characters))
    return Transcript(text, [character for character in characters if character.text != " "])
