"""A sample of scripts/torture."""

import importlib.util
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load_form(name):
    """Returns the module of a form of scripts/torture."""
    path = SCRIPTS / "tortures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"torture_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutated_recordings_are_read_or_refused_in_a_sentence():
    audio = load_form("audio")
    outcomes = []
    for _, content, n_samples in audio.mutants(200, seed=0):
        outcomes.append(audio.try_mutant(content, n_samples))
    # times depend on the machine
    faults = [outcome for outcome in outcomes if outcome.kind in ("traceback", "memory")]
    assert not faults
    # of those that are not detected, such as a shorter length in a header
    assert sum(outcome.kind == "other length" for outcome in outcomes) <= 4
    assert sum(outcome.kind == "read" for outcome in outcomes) > 40
