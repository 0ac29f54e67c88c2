"""CTC loss on the device: lengths are read there, so a CUDA graph can capture it (Graves 2006).

The 2 u + 1 states of u labels are a blank before each label and one after the last. Two vectors
hold them: `blank[i]`, the blank before label i, and `label[i]`. A step of a frame with log
probabilities `e` is

    blank[i] <- e[0]        + log(exp(blank[i]) + exp(label[i - 1]))
    label[i] <- e[label i]  + log(exp(label[i]) + exp(blank[i]) + exp(label[i - 1])),

where the last term is absent if label i - 1 is the same. Read from the last frame and the last
label, the same steps sum the ends of all paths instead of their beginnings.

Sums are held in fp64, since logarithms grow with the number of frames and fp32 would lose 1e-4 of
the gradient after 500 frames. Exponentials and logarithms of their differences are fp32.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK = 16  # states that a step of the gradient reads; constant, so that padding changes no sum


def ctc_loss(
    log_probs: Float[Tensor, "b t v"],
    targets: Int[Tensor, "b u"],
    lengths: Int[Tensor, " b"],
    target_lengths: Int[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Returns the sum of -log p(targets) over rows, p summed over all alignments; 0 is the blank.

    A row whose target fits no alignment contributes neither a loss nor a gradient. The gradient is
    `-p(token at frame | targets)`, which the backward of log_softmax turns into that of the scores.
    It is deterministic: sums are in a fixed order, and a row does not depend on others.

    Args:
        log_probs: log probabilities of the tokens in each frame, fp32.
        targets: token ids; positions after the length of a row are not read.
        lengths: number of frames of each row, in [0, t], on the device of `log_probs`.
        target_lengths: number of token ids of each row, in [0, u], on the same device.
    """
    return _CTCLoss.apply(log_probs, targets, lengths, target_lengths)


class _CTCLoss(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        log_probs: Tensor,
        targets: Tensor,
        lengths: Tensor,
        target_lengths: Tensor,
    ) -> Tensor:
        # memory in which the kernels find their inputs row by row
        n_rows, n_frames, vocab_size = log_probs.shape
        log_probs = log_probs.contiguous()
        targets = targets.contiguous()
        lengths = lengths.contiguous()
        target_lengths = target_lengths.contiguous()
        max_labels = targets.shape[1]
        losses = log_probs.new_empty(n_rows, dtype=torch.float64)
        sums = log_probs.new_empty(2, n_rows, n_frames, 2 * max_labels + 1, dtype=torch.float64)
        # one program for the beginnings of paths and one for their ends
        block = max(32, triton.next_power_of_2(max_labels + 1))
        if n_rows:
            _sum_paths[(n_rows, 2)](
                log_probs,
                targets,
                lengths,
                target_lengths,
                losses,
                sums,
                n_frames,
                vocab_size,
                max_labels,
                block=block,
                num_warps=min(8, block // 32),
                num_stages=1,
            )
        ctx.save_for_backward(targets, lengths, target_lengths, losses, sums)
        ctx.vocab_size = vocab_size  # type: ignore[attr-defined]  # torch stores any attribute
        return losses.masked_fill(losses == torch.inf, 0.0).sum().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        targets, lengths, target_lengths, losses, sums = ctx.saved_tensors  # type: ignore[attr-defined]
        _, n_rows, n_frames, _ = sums.shape
        vocab_size: int = ctx.vocab_size  # type: ignore[attr-defined]
        gradient = grad_loss.new_empty(n_rows, n_frames, vocab_size)
        block = min(128, max(16, triton.next_power_of_2(vocab_size)))
        if gradient.numel():
            _gradient[(n_frames, n_rows, triton.cdiv(vocab_size, block))](
                targets,
                lengths,
                target_lengths,
                losses,
                sums,
                grad_loss.contiguous(),
                gradient,
                vocab_size,
                targets.shape[1],
                chunk=CHUNK,
                block=block,
                num_warps=4,
                num_stages=1,
            )
        return gradient, None, None, None


# `no_type_check` also exempts kernels from the wrapper of jaxtyping, which Triton cannot compile


@triton.jit
@no_type_check
def _log_add(a, b):
    """log(exp a + exp b) of fp64 values, which may be -inf."""
    # the maximum may drop a NaN, which the differences keep
    top = tl.maximum(a, b)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.exp((a - base).to(tl.float32)) + tl.exp((b - base).to(tl.float32))
    # without log(0), of which the interpreter would warn
    is_empty = (a == float("-inf")) & (b == float("-inf"))
    return top + tl.log(tl.where(is_empty, 1.0, total)).to(tl.float64)


@triton.jit(do_not_specialize=["max_frames", "vocab_size", "max_labels"])
@no_type_check
def _sum_paths(  # noqa: PLR0913  # a kernel takes each address and size
    log_probs,
    targets,
    lengths,
    target_lengths,
    losses,
    sums,
    max_frames,
    vocab_size,
    max_labels,
    block: tl.constexpr,
):
    """Sums the beginnings (program 0 of a row) or ends (program 1) of all paths, by state.

    `sums[0, row, frame]` includes the log probability of the frame, `sums[1, row, frame]` does not,
    so that their sum is that of all paths through a state. Both hold the blanks, then the labels.
    """
    row = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    n_rows = tl.num_programs(0).to(tl.int64)
    n_frames = tl.load(lengths + row).to(tl.int32)
    n_labels = tl.load(target_lengths + row).to(tl.int32)
    is_reversed = direction == 1

    # label i in reading order, and whether a path may skip the blank before it
    i = tl.arange(0, block)
    is_label = i < n_labels
    has_previous = is_label & (i > 0)
    position = tl.where(is_reversed, n_labels - 1 - i, i)
    previous = tl.where(is_reversed, position + 1, position - 1)
    row_targets = targets + row * max_labels
    token = tl.load(row_targets + position, mask=is_label, other=0)
    previous_token = tl.load(row_targets + previous, mask=has_previous, other=0)
    can_skip = has_previous & (token != previous_token)

    # where the sums of a frame are stored
    is_blank = i <= n_labels
    blank_position = tl.where(is_reversed, n_labels - i, i)
    label_position = max_labels + 1 + position
    row_sums = sums + (direction * n_rows + row) * max_frames * (2 * max_labels + 1)

    # before the first frame, all paths are in the first blank
    nothing = float("-inf")
    blank = tl.where(i == 0, 0.0, nothing).to(tl.float64)
    label = tl.full((block,), nothing, tl.float64)
    row_log_probs = log_probs + row * max_frames * vocab_size
    frame = tl.where(is_reversed, n_frames - 1, 0)
    stride = tl.where(is_reversed, -1, 1)
    next_log_probs = row_log_probs + frame.to(tl.int64) * vocab_size
    blank_log_prob = tl.load(next_log_probs, mask=n_frames > 0, other=0.0)
    log_prob = tl.load(next_log_probs + token, mask=is_label & (n_frames > 0), other=0.0)

    for step in range(n_frames):
        # the next frame is loaded while this one is computed
        has_next = step + 1 < n_frames
        next_log_probs = row_log_probs + (frame + stride).to(tl.int64) * vocab_size
        next_blank_log_prob = tl.load(next_log_probs, mask=has_next, other=0.0)
        next_log_prob = tl.load(next_log_probs + token, mask=is_label & has_next, other=0.0)

        previous_label = tl.gather(label, tl.maximum(i - 1, 0), 0)
        previous_label = tl.where(i > 0, previous_label, nothing)
        entered_blank = _log_add(blank, previous_label)
        entered_label = _log_add(label, tl.where(can_skip, entered_blank, blank))
        blank = entered_blank + blank_log_prob.to(tl.float64)
        label = entered_label + log_prob.to(tl.float64)

        frame_sums = row_sums + frame.to(tl.int64) * (2 * max_labels + 1)
        stored_blank = tl.where(is_reversed, entered_blank, blank)
        stored_label = tl.where(is_reversed, entered_label, label)
        tl.store(frame_sums + blank_position, stored_blank, mask=is_blank)
        tl.store(frame_sums + label_position, stored_label, mask=is_label)
        frame += stride
        blank_log_prob = next_blank_log_prob
        log_prob = next_log_prob

    # paths end in the last blank or the last label; a selection by a sum keeps NaN
    in_blank = tl.sum(tl.where(i == n_labels, blank, 0.0), 0)
    in_label = tl.sum(tl.where(i == n_labels - 1, label, 0.0), 0)
    in_label = tl.where(n_labels > 0, in_label, nothing)
    tl.store(losses + row, -_log_add(in_blank, in_label), mask=direction == 0)


@triton.jit(do_not_specialize=["vocab_size", "max_labels"])
@no_type_check
def _gradient(  # noqa: PLR0913  # a kernel takes each address and size
    targets,
    lengths,
    target_lengths,
    losses,
    sums,
    grad_loss,
    gradient,
    vocab_size,
    max_labels,
    chunk: tl.constexpr,
    block: tl.constexpr,
):
    """Sums the shares of the paths through the states of each token, for one frame of one row."""
    frame = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(2) * block + tl.arange(0, block)
    max_frames = tl.num_programs(0).to(tl.int64)
    n_rows = tl.num_programs(1).to(tl.int64)
    n_labels = tl.load(target_lengths + row).to(tl.int32)
    loss = tl.load(losses + row)
    # frames of padding and rows without an alignment have a gradient of 0
    has_gradient = (frame < tl.load(lengths + row)) & (loss != float("inf"))
    n_states = tl.where(has_gradient, n_labels + 1, 0)

    width = 2 * max_labels + 1
    beginnings = sums + (row * max_frames + frame) * width
    ends = beginnings + n_rows * max_frames * width
    blank_shares = tl.zeros((chunk,), tl.float32)
    shares = tl.zeros((block,), tl.float32)
    for start in range(0, n_states, chunk):
        # blanks
        i = start + tl.arange(0, chunk)
        is_blank = i <= n_labels
        log_share = tl.load(beginnings + i, mask=is_blank, other=float("-inf"))
        log_share += tl.load(ends + i, mask=is_blank, other=0.0)
        blank_shares += tl.exp((log_share + loss).to(tl.float32))
        # labels, added to the tokens that they are
        is_label = i < n_labels
        label = tl.load(targets + row * max_labels + i, mask=is_label, other=-1)
        position = max_labels + 1 + i
        log_share = tl.load(beginnings + position, mask=is_label, other=float("-inf"))
        log_share += tl.load(ends + position, mask=is_label, other=0.0)
        share = tl.exp((log_share + loss).to(tl.float32))
        is_token = label[:, None] == tokens[None, :]
        shares += tl.sum(tl.where(is_token, share[:, None], 0.0), 0)

    shares += tl.where(tokens == 0, tl.sum(blank_shares, 0), 0.0)
    scale = tl.load(grad_loss)
    row_gradient = gradient + (row * max_frames + frame) * vocab_size
    tl.store(row_gradient + tokens, -scale * shares, mask=tokens < vocab_size)
