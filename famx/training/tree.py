"""Trees of a checkpoint: nested dicts, lists and tuples of tensors, numbers, strings and None."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from famx.notation import UserError

# errors of code that reads a tree of another structure, or values that it does not support
MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def flatten(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Converts a tree to JSON; moves its tensors into `tensors` by their paths, each once.

    Raises:
        TypeError: the tree holds something else.
    """
    if isinstance(tree, Tensor):
        # tied weights are saved once
        for name, tensor in tensors.items():
            if tensor is tree or _shares_memory(tensor, tree):
                return {"tensor": name}
        tensors[path] = tree.detach().contiguous()
        return {"tensor": path}
    # JSON has only string keys, so a dict becomes a list of pairs
    if isinstance(tree, dict):
        pairs = []
        for key, value in tree.items():
            pairs.append([key, flatten(value, f"{path}.{key}".lstrip("."), tensors)])
        return {"dict": pairs}
    if isinstance(tree, list | tuple):
        items = []
        for i, value in enumerate(tree):
            items.append(flatten(value, f"{path}.{i}".lstrip("."), tensors))
        return {type(tree).__name__: items}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(
        f"a checkpoint holds tensors, numbers and strings, not {type(tree).__name__} at {path}"
    )


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverts `flatten`.

    Raises:
        ValueError, LookupError, TypeError: `flatten` does not return such a tree, or a tensor is
            missing.
    """
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise ValueError(f"a list of {len(tree)} values has no type")
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        if value not in tensors:
            raise LookupError(f"the tensor {value} is missing")
        return tensors[value]
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in value}
    if kind not in ("list", "tuple"):
        raise ValueError(f"there is no type {kind}")
    items = [unflatten(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    same_start = a.numel() > 0 and a.data_ptr() == b.data_ptr()
    return same_start and a.shape == b.shape and a.dtype == b.dtype


def first_nan(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor that contains a NaN, None if there is none.

    Infinite values are no fault in general: masks and thresholds may have them.
    """
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    if not names:
        return None
    # all tensors are checked in one device copy
    flags = [tensors[name].isnan().any() for name in names]
    has_nan = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    return next((name for name, flag in zip(names, has_nan, strict=True) if flag), None)


def describe(value: object) -> str:
    """Returns the dtype and the shape of a tensor, or the type of another value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def require_like(saved: Any, template: Any, path: str) -> None:
    """Checks that a tree has the structure of a template: keys, types, shapes and dtypes.

    An option that is None or a boolean in the template may be either, or a number.

    Raises:
        UserError: the trees differ; the message names the first difference.
    """
    if isinstance(template, dict) and isinstance(saved, dict):
        for key in template | saved:
            if key not in saved or key not in template:
                state = "missing" if key in template else "not expected"
                raise UserError(f"{path}.{key} is {state}")
            require_like(saved[key], template[key], f"{path}.{key}")
    elif isinstance(template, list | tuple) and type(saved) is type(template):
        if len(saved) != len(template):
            raise UserError(f"{path} has {len(saved)} values, {len(template)} are expected")
        for i, (item, expected) in enumerate(zip(saved, template, strict=True)):
            require_like(item, expected, f"{path}.{i}")
    elif not _is_like(saved, template):
        raise UserError(f"{path} is {describe(saved)}, {describe(template)} is expected")
    elif isinstance(saved, float) and math.isnan(saved):
        raise UserError(f"{path} is not a number")


def _is_like(saved: Any, template: Any) -> bool:
    """Returns whether a tensor, a number, a string or None can replace that of the template."""
    if isinstance(template, Tensor):
        return isinstance(saved, Tensor) and describe(saved) == describe(template)
    if template is None or isinstance(template, bool):
        return saved is None or isinstance(saved, bool | int | float)
    if isinstance(template, float):
        return type(saved) in (int, float)
    return type(saved) is type(template)


@contextlib.contextmanager
def restoring(what: str) -> Iterator[None]:
    """Reports an error of code that restores saved content as a sentence.

    The content of a file decides about the error, so it is a mistake in the file.

    Raises:
        UserError: the content has another structure, or values that are not supported.
    """
    try:
        yield
    except MALFORMED as error:
        reason = str(error).strip().partition("\n")[0]
        if not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(f"{what} cannot be restored: {reason}") from error
