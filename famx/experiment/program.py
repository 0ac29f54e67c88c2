"""The model of a run as a program of `torch.export`, and in ONNX, which run without famx."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from famx.notation import SAMPLE_RATE, Modality, UserError

PROGRAM = "program.pt2"
ONNX = "model.onnx"
# the shortest input; a shorter one is padded, and `lengths` says how long it is
MIN_SIZES = {Modality.SPEECH: SAMPLE_RATE, Modality.TEXT: 2}
MAX_SIZES = {Modality.SPEECH: 600 * SAMPLE_RATE, Modality.TEXT: 2**16}
MAX_BATCH = 1024
ONNX_PACKAGES = ("onnx", "onnxscript")
TOLERANCE = 1e-4  # between the scores of a program and those of the model, relative to the largest


def export_program(model: nn.Module, modality: Modality, vocab_size: int) -> ExportedProgram:
    """Exports `model(inputs, lengths) -> (scores, lengths)` for batches and inputs of any size.

    Args:
        model: a model on the CPU, in evaluation.
        modality: modality of its inputs.
        vocab_size: number of token ids of a text.

    Raises:
        UserError: the model cannot be exported, or its program gives other scores.
    """
    if modality not in MIN_SIZES:
        raise UserError(f"a model of {modality.value} is not exported as a program")
    size = MIN_SIZES[modality]
    inputs = _example(modality, 2, 3 * size, vocab_size)
    lengths = torch.tensor([3 * size, 2 * size])
    batch = Dim("batch", min=1, max=MAX_BATCH)
    length = Dim("length", min=size, max=MAX_SIZES[modality])
    shapes = ({0: batch, 1: length}, {0: batch})
    try:
        with torch.no_grad(), _without_output():
            program = torch.export.export(
                model, (inputs, lengths), dynamic_shapes=shapes, strict=False
            )
    # whatever an operation of a part raises when it is traced
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"torch.export cannot export this model: {reason}") from error
    # other sizes than the example's
    inputs = _example(modality, 3, 2 * size + size // 2, vocab_size)
    lengths = torch.tensor([2 * size, 2 * size + size // 2, size])
    difference = _difference(model, program.module(), inputs, lengths)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the scores of the exported program differ by {difference:.1e} of the largest from "
            f"those of the model, which is more than {TOLERANCE:.0e}"
        )
    _remove_traces(program)
    return program


def _remove_traces(program: ExportedProgram) -> None:
    """Removes the lines of source that operations are from, with the paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def save_program(program: ExportedProgram, file: Path) -> None:
    """Writes a program, which `torch.export.load(file).module()` reads."""
    with warnings.catch_warnings():
        # about weights that are views, which are written right
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, file)


def require_onnx() -> None:
    """Checks that the packages for ONNX are installed.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def save_onnx(program: ExportedProgram, file: Path) -> None:
    """Writes a program in ONNX.

    Raises:
        UserError: an operation has no form in ONNX.
    """
    try:
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise UserError(f"the model has no form in ONNX: {reason}") from error
    assert converted is not None
    converted.save(file)


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Leaves out what torch logs and prints while it traces; the error has the reason."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def _example(modality: Modality, rows: int, size: int, vocab_size: int) -> Tensor:
    """Returns random inputs, which do not change the global random numbers."""
    generator = torch.Generator().manual_seed(0)
    if modality is Modality.SPEECH:
        return 0.1 * torch.randn(rows, size, generator=generator)
    return torch.randint(vocab_size, (rows, size), generator=generator)


@torch.no_grad()
def _difference(model: nn.Module, program: nn.Module, inputs: Tensor, lengths: Tensor) -> float:
    """Returns the largest difference of the scores, relative to the largest score."""
    expected, n_frames = model(inputs, lengths)
    scores, _ = program(inputs, lengths)
    # padding may have any scores
    is_frame = torch.arange(expected.shape[1]) < n_frames[:, None]
    differences = (scores - expected)[is_frame].abs()
    return float(differences.max() / expected[is_frame].abs().max())
