"""Imports of torchaudio, which take seconds, and fail where its build is not that of torch."""

import importlib
from types import ModuleType

import torch

from famx.notation import UserError


def import_torchaudio(module: str) -> ModuleType:
    """Imports a module of torchaudio, such as `functional`.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(f"torchaudio.{module}")
    # OSError: a library of torch for another device is missing
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"torchaudio cannot be imported with torch {torch.__version__} ({reason}): install "
            "both for the same device, without a GPU by pip install torch torchaudio --index-url "
            "https://download.pytorch.org/whl/cpu"
        ) from error
