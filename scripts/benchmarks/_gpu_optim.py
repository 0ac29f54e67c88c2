"""Steps of optimizers and clipping on a GPU, in units of torch's, for a small and a large model."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._gpu_timing import Page, milliseconds
from famx.nn.clip import clip_by_unit_norm
from famx.optim import FAM, FAMAdamW, MaxFactor

Shapes = Sequence[tuple[int, ...]]
WARMUP = 130  # rules begin to act after 100 steps
LAYER = ((2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,))
NORMS = ((768,),) * 4
# GPT-2 small: 124 M parameters in 148 tensors
LARGE = ((50257, 768), (1024, 768), *(LAYER + NORMS) * 12, (768,), (768,))
# 1.9 M parameters in 61 tensors
SMALL_LAYER = ((576, 192), (576,), (192, 192), (192,), (768, 192), (768,), (192, 768), (192,))
SMALL = ((100, 192), *(SMALL_LAYER + ((192,),) * 4) * 4, (192,), (192,), *((192, 96),) * 10)


def tensors(shapes: Shapes) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    """Returns parameters and two sets of gradients."""
    torch.manual_seed(0)
    params = [nn.Parameter(0.02 * torch.randn(shape, device="cuda")) for shape in shapes]
    gradients = []
    for _ in range(2):
        gradients.append([torch.randn_like(p) for p in params])
    return params, gradients


def step_function(
    shapes: Shapes, build: Callable[[list[nn.Parameter]], Callable[[], object]]
) -> Callable[[], object]:
    """Returns a function that sets the next gradients and calls what `build` returns."""
    params, gradients = tensors(shapes)
    act = build(params)
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1
        for p, gradient in zip(params, gradients[calls % 2], strict=True):
            p.grad = gradient
        act()

    return step


def trained(optimizer_type: type, **options: object) -> Callable[..., Callable[[], object]]:
    """Returns a factory of steps of one of famx's optimizers, as the trainer takes them.

    The trainer has read all gradients for clipping, and says whether they are finite.
    """

    def build(params: list[nn.Parameter]) -> Callable[[], object]:
        optimizer = optimizer_type(params, **options)
        found_inf = torch.zeros((), device="cuda")

        def step() -> None:
            optimizer.found_inf = found_inf
            optimizer.step()

        return step

    return build


def alone(optimizer_type: type, **options: object) -> Callable[..., Callable[[], object]]:
    """Returns a factory of steps of an optimizer."""
    return lambda params: optimizer_type(params, **options).step


def main(page: Page, copy_rate: float) -> None:
    """Prints the rows of both models."""
    adamw = alone(torch.optim.AdamW, lr=1e-4, fused=True)
    sgd = alone(torch.optim.SGD, lr=1e-4, momentum=0.9, fused=True)
    adafactor = alone(torch.optim.Adafactor, lr=1e-4, foreach=True)

    def clip(params: list[nn.Parameter]) -> Callable[[], object]:
        return partial(clip_by_unit_norm, params, 0.005)

    def clip_grad_norm(params: list[nn.Parameter]) -> Callable[[], object]:
        return partial(nn.utils.clip_grad_norm_, params, 1.0, foreach=True)

    # name, famx, torch, passes over the parameters' memory, gates for the large and small model
    rows = (
        ("FAM-AdamW / AdamW fused", trained(FAMAdamW, lr=1e-4), adamw, 7, 1.25, 1.25),
        ("FAM-AdamW alone / AdamW fused", alone(FAMAdamW, lr=1e-4), adamw, 8, 0, 0),
        ("FAM / SGD momentum fused", trained(FAM, lr=1e-4), sgd, 5, 1.5, 0),
        ("MaxFactor / Adafactor foreach", trained(MaxFactor), adafactor, 5, 0.35, 0),
        ("unit clip / clip_grad_norm_ foreach", clip, clip_grad_norm, 4, 0.5, 0.5),
    )
    for title, shapes, index in (("124 M", LARGE, 4), ("1.9 M", SMALL, 5)):
        numel = sum(torch.Size(shape).numel() for shape in shapes)
        page.section(f"optimizers, {numel / 1e6:.1f} M parameters in {len(shapes)} tensors")
        for row in rows:
            name, famx_factory, torch_factory, passes = row[:4]
            functions = (step_function(shapes, famx_factory), step_function(shapes, torch_factory))
            for _ in range(WARMUP):
                functions[0]()
            famx_ms, torch_ms = milliseconds(*functions)
            floor = 1e3 * 4 * passes * numel / copy_rate
            notes = (f"{famx_ms:.3f} ms", f"torch {torch_ms:.3f} ms", f"floor {floor:.3f} ms")
            page.row(f"{name}, {title}", famx_ms / torch_ms, *notes, most=row[index])
