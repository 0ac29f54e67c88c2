"""Parts of a user's file are checked before they train."""

import json
import pwd

import pytest

from famx.experiment import user_parts
from famx.registry import PARTS

TEXT = ("task=lm", "data=text", "data.path=text.txt")
SMALL = ("model.d_model=16", "model.n_heads=2", "model.n_layers=1", "hydra.run.dir=run")
SHORT = ("trainer.max_steps=2", "trainer.device=cpu", "famx_parts=[own.py]", "attention=own")
# looks at later positions
LEAKS = '''\
"""Plain attention over all positions."""

from famx.attention.multihead import MultiheadAttention
from famx.registry import register


@register("attention")
class Leaks(MultiheadAttention):
    def __init__(self, *, sharpness: float = 1.0, **context):
        super().__init__(**context)

    def mix(self, q, k, v, mask, causal):
        return super().mix(q, k, v, mask, causal=False)
'''
SOUND = LEAKS.replace("causal=False", "causal")
EXEMPT = LEAKS.replace(
    "    def __init__", '    exempt = {"causal": "for speech"}\n\n    def __init__'
)


@pytest.fixture
def train(command, tmp_path, monkeypatch):
    """Returns a function that trains with an attention block of a user."""
    monkeypatch.setenv("FAMX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(user_parts, "_checked", set())
    monkeypatch.setitem(PARTS, "attention", dict(PARTS["attention"]))

    def run(code, *words, data=TEXT):
        (tmp_path / "own.py").write_text(code)
        return command("train", *data, *SMALL, *SHORT, *words)

    return run


def n_checks(monkeypatch):
    """Returns a list that grows with each check of a part."""
    checks = []
    original = user_parts.run_contracts
    causal = user_parts.essential_contracts("attention")["causal"]
    monkeypatch.setattr(user_parts, "essential_contracts", lambda room: {"causal": causal})

    def counted(part, contracts):
        checks.append(part)
        return original(part, contracts)

    monkeypatch.setattr(user_parts, "run_contracts", counted)
    return checks


def test_block_that_sees_the_future_does_not_train_a_language_model(train, tmp_path):
    refused = train(LEAKS)
    assert refused.status == 2
    assert "attention=own breaks 1 of its 9 contracts: causal; leaks the future" in (
        refused.sentence
    )
    assert refused.sentence.endswith("own.py shows all, check=off trains nevertheless")
    assert not (tmp_path / "run").exists()


def test_unchecked_run_says_so_in_its_result(train, tmp_path, command):
    trained = train(LEAKS, "check=off")
    assert trained.status == 0, trained.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["check"] == "off"
    assert command("evaluate", "run", "--split", "dev", "famx_parts=[own.py]").status == 0
    assert json.loads((tmp_path / "run" / "scores.dev.json").read_text())["check"] == "off"


def test_part_is_checked_again_only_after_a_change(train, tmp_path, monkeypatch):
    checks = n_checks(monkeypatch)
    for index, (code, words, expected) in enumerate(
        (
            (SOUND, (), 1),
            (SOUND, (), 1),
            # in another process
            (SOUND, (), 1),
            (SOUND, ("attention.sharpness=2",), 2),
            (SOUND + "# changed\n", (), 3),
        )
    ):
        if index == 2:
            user_parts._checked.clear()
        trained = train(code, *words, f"hydra.run.dir=run{index}")
        assert trained.status == 0, trained.err
        assert len(checks) == expected, index
    assert json.loads((tmp_path / "run0" / "result.json").read_text())["check"] == "on"


def test_block_exempt_from_causality_is_for_other_tasks(train, corpus):
    refused = train(EXEMPT)
    assert refused.status == 2
    assert "exempt from causal, but the task predicts later positions" in refused.sentence
    speech = ("task=ctc", "data=manifest", f"data.root={corpus}", "task.vocab_size=0")
    for code in (EXEMPT, LEAKS):
        trained = train(code, f"hydra.run.dir=run{len(code)}", data=speech)
        assert trained.status == 0, trained.err


def test_block_of_a_single_layer_is_checked(train):
    refused = train(LEAKS, "attention=multihead", "model.layers=[{},{attention: own}]")
    assert refused.status == 2
    assert "attention=own breaks" in refused.sentence


def test_part_that_does_not_fit_the_small_sizes_is_checked_with_its_defaults(train):
    code = SOUND.replace(
        "        super().__init__(**context)\n",
        "        super().__init__(**context)\n"
        "        if self.d_model == 24 and sharpness > 1:\n"
        "            raise ValueError('d_model=24 is too small')\n",
    )
    assert "super().mix" in code and "too small" in code
    trained = train(code, "attention.sharpness=2")
    assert trained.status == 0, trained.err


def test_user_without_a_home_trains_with_a_part(train, monkeypatch):
    def find_nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "FAMX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    trained = train(SOUND)
    assert trained.status == 0, trained.err


def test_level_of_checking_is_on_or_off(train):
    refused = train(SOUND, "check=offf")
    assert refused.status == 2
    assert (
        refused.sentence == "famx: check=offf: no such level; did you mean off? (choices: off, on)"
    )


def test_sweep_is_refused_before_its_first_run(train, tmp_path, monkeypatch):
    checks = n_checks(monkeypatch)
    refused = train(LEAKS, "-m", "attention=multihead,own", "seed=0,1", "hydra.sweep.dir=sweep")
    assert refused.status == 2
    assert "attention=own breaks" in refused.sentence
    assert not (tmp_path / "sweep").exists()
    # once, though several runs have the part
    assert len(checks) <= 2
