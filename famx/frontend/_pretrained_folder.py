"""Folders that the library transformers has saved: config.json and weights in safetensors."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from famx.notation import SAMPLE_RATE, UserError

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # one file, or the list of several
PICKLED = "pytorch_model*.bin"
OPTIONAL = {"masked_spec_embed"}  # weights that are zero where a folder lacks them


def require_folder(frontend: str, path: str | None) -> Path:
    """Returns the folder of a pretrained model.

    Raises:
        UserError: there is none, or it has no config or no safetensors.
    """
    if not path:
        raise UserError(
            f"frontend={frontend} needs the folder of a pretrained model, as transformers saves "
            "it: frontend.path=FOLDER"
        )
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"frontend.path={path} is no folder")
    if not (folder / CONFIG).is_file():
        raise UserError(f"frontend.path={path} is no folder of transformers: it has no {CONFIG}")
    if any((folder / name).is_file() for name in WEIGHTS):
        return folder
    pickled = sorted(file.name for file in folder.glob(PICKLED))
    if pickled:
        raise UserError(
            f"frontend.path={path} has its weights in {pickled[0]}, which can run code, and only "
            f"{WEIGHTS[0]} is read: save_pretrained of transformers writes that file"
        )
    raise UserError(f"frontend.path={path} has no weights: there is no {WEIGHTS[0]}")


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json.

    Raises:
        UserError: it is no JSON, or no object.
    """
    return _read_json(folder / CONFIG)


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """Reads preprocessor_config.json, which says how a signal is prepared; it may be missing.

    Raises:
        UserError: it is no JSON object, or for another sampling rate.
    """
    file = folder / PREPROCESSOR
    settings = _read_json(file) if file.is_file() else {}
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise UserError(f"{file} is for signals of {rate} Hz, and those of famx have {SAMPLE_RATE}")
    return settings


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not an object")
    return content


def read_weights(
    folder: Path, model_class: Any, config: Any, renamed: Mapping[str, str]
) -> tuple[nn.Module, dict[str, list[Any]]]:
    """Builds a model of the library with the weights of a folder, as far as they fit.

    No network is used, and no file is unpickled.

    Args:
        model_class, config: class of the model, and the config of its architecture.
        renamed: patterns of names in the folder, and what the model calls them.

    Returns:
        The model, and the lists `missing_keys`, `unexpected_keys` and `mismatched_keys`.

    Raises:
        UserError: a file is damaged.
    """
    try:
        with _without_output():
            loaded, info = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                key_mapping=dict(renamed),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
            )
    except (SafetensorError, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights in {folder} are damaged or incomplete: {first_line}"
        ) from error
    return loaded, {key: sorted(info[key]) for key in info if key.endswith("_keys")}


@contextmanager
def _without_output() -> Iterator[None]:
    """Leaves out the progress bars and tables of the library; errors of famx have the reasons."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    has_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def require_fit(folder: Path, model: nn.Module, info: Mapping[str, list[Any]]) -> None:
    """Checks that the weights of a folder are those of the model; others are allowed outside of it.

    Raises:
        UserError: a weight is missing, unexpected, or has another shape.
    """
    # heads and decoders are modules that the model does not have
    modules = {name.partition(".")[0] for name in model.state_dict()}
    unexpected = [name for name in info["unexpected_keys"] if name.partition(".")[0] in modules]
    is_complete = OPTIONAL.issuperset(info["missing_keys"])
    if not is_complete or unexpected or info["mismatched_keys"]:
        raise UserError(
            f"{folder} holds weights of another architecture than its {CONFIG}: "
            f"{describe_differences(info)}"
        )


def describe_differences(info: Mapping[str, list[Any]]) -> str:
    """Returns the first missing weight, the first unexpected one, and the first of other shape."""
    facts = []
    missing = [name for name in info["missing_keys"] if name not in OPTIONAL]
    if missing:
        facts.append(f"the first missing weight is {missing[0]}")
    if info["unexpected_keys"]:
        facts.append(f"the first unexpected one is {info['unexpected_keys'][0]}")
    for name, there, here in info["mismatched_keys"][:1]:
        facts.append(f"{name} is {tuple(there)} there, {tuple(here)} by {CONFIG}")
    return ", ".join(facts)
