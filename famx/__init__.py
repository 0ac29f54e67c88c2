"""famx: tests new ideas in speech recognition and language modelling against baselines."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from famx.inference import Recognizer

try:
    __version__ = version("famx")
except PackageNotFoundError:
    # run from a checkout that is not installed
    __version__ = "unknown"


def load(
    run: str | Path,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    trust_edits: bool = False,
) -> "Recognizer":
    """Loads a trained run: `famx.load("outputs/RUN").transcribe(["a.wav"])`.

    Args:
        run: the run's folder.
        checkpoint: `best` on dev, or `last`.
        overrides: settings such as `decode=ctc_greedy` or `trainer.device=cpu`.
        trust_edits: whether to use a config and a tokenizer that have changed since the training.

    Raises:
        UserError: the run or checkpoint does not exist, or an override sets another option.
    """
    # imported late, so that `import famx` stays fast
    from famx.inference import Recognizer

    return Recognizer(run, checkpoint, overrides, trust_edits)
