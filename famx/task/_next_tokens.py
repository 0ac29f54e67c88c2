"""The loss of a decoder of texts with attention: cross-entropy of each next token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from famx.nn.batch import Batch
from famx.nn.encoding import END_ID
from famx.nn.masks import length_mask

IGNORED = -100  # target of padding, which cross_entropy ignores


def text_inputs(batch: Batch) -> tuple[Int[Tensor, "b u"], Int[Tensor, " b"]]:
    """Returns the inputs of a decoder, the beginning and the tokens of each text; their lengths."""
    text = nn.functional.pad(batch.targets, (1, 0), value=END_ID)
    return text, batch.target_lengths + 1


def next_token_loss(
    text_scores: Float[Tensor, "b u v"], batch: Batch, label_smoothing: float
) -> Float[Tensor, ""]:
    """Computes `-sum_u log p(y_u | y_<u, signal) / tokens`, over the tokens and the end of a text.

    Args:
        text_scores: scores of the token after each one of `text_inputs`.
        label_smoothing: share of the target that is divided equally among all tokens.
    """
    # targets: the tokens and the end, after each of which there is padding
    size = text_scores.shape[1]
    positions = torch.arange(size, device=text_scores.device)
    tokens = nn.functional.pad(batch.targets, (0, 1))
    is_end = positions == batch.target_lengths[:, None]
    targets = tokens.masked_fill(is_end, END_ID)
    padding = ~length_mask(batch.target_lengths + 1, size)
    targets = targets.masked_fill(padding, IGNORED)
    total = cross_entropy(
        text_scores.float().flatten(0, 1),
        targets.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / batch.target_lengths.sum().clamp(min=1)


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises a ValueError if the share is not from 0 to below 1."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to below 1")
