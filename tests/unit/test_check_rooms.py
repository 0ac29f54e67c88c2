"""`python -m famx.check` finds faults in parts of each kind of room."""

import pytest

from famx.check import main
from famx.registry import PARTS

OPTIMIZER = """
import torch
from famx.registry import register

@register("optim")
class UserOptimizer(torch.optim.Optimizer):
    def __init__(self, params, *, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr})
        self.decay = weight_decay

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad + self.decay * p, alpha=group["lr"])
"""
MOMENTUM = """
from famx.momentum.base import MomentumRule
from famx.registry import register

@register("momentum")
class UserRule(MomentumRule):
    def forward(self, gradients, step):
        return self.base.{}
"""
SPECTRUM = """
import torch
from famx.registry import register
from famx.spectrum.contiguous import Contiguous

@register("spectrum")
class UserSpectrum(Contiguous):
    def forward(self, gradients):
        shares = super().forward(gradients)
        return torch.nn.functional.one_hot({}shares.argmax(1), self.max_bands).float()
"""
NORM = """
import torch
from famx.registry import register

@register("norm")
class UserNorm(torch.nn.LayerNorm):
    def __init__(self, {}):
        super().__init__(24)
"""


@pytest.fixture(autouse=True)
def restore_parts(monkeypatch):
    for room, parts in PARTS.items():
        monkeypatch.setitem(PARTS, room, dict(parts))


@pytest.fixture
def check_file(tmp_path, capsys):
    """Returns a function that checks the parts of a text and returns what is printed."""

    def check(text: str) -> str:
        file = tmp_path / "user_part.py"
        file.write_text(text)
        main([str(file)])
        return capsys.readouterr().out

    return check


def test_parts_of_famx_are_checked_by_name(capsys):
    assert main(["norm=rmsnorm", "norm.eps=1e-5", "schedule=constant"]) == 0
    assert main(["spectrum=shuffled"]) == 0
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary.startswith("spectrum=shuffled keeps all of its ")
    exempt = "sums_to_one, flat_on_white, separates_slow_and_fast"
    assert summary.endswith(f"except {exempt}, from which it is exempt")


def test_an_error_of_the_constructor_is_printed_once(capsys):
    assert main(["optim=fam", "optim.alpha=3"]) == 2
    _, *lines, summary = capsys.readouterr().out.splitlines()
    n = len(lines)
    message = "ValueError: alpha=3.0 is not"
    assert f"breaks {n} of its {n} contracts, all of them with the same error: {message}" in summary
    assert sum("alpha" in line for line in lines) == 1
    assert sum(": same error as descends" in line for line in lines) == n - 1


def test_an_optimizer_that_lacks_what_torch_has_is_reported(check_file):
    output = check_file(OPTIMIZER)
    for contract in ("decays_the_weights", "returns_the_loss_of_a_closure", "non_finite"):
        assert f"broken  {contract}: " in output
    assert "kept    observing_changes_nothing" in output
    without_decay = check_file(OPTIMIZER.replace("+ self.decay * p", ""))
    assert "broken  decays_the_weights: weight_decay=0.1 changes nothing" in without_decay


@pytest.mark.parametrize(
    ("expression", "messages"),
    [
        ("unbind()", ["7 of its 7 contracts, all of them with the same error: ", "tuple"]),
        ("view(1, -1)", ["(1, 6)", "all of them with the same error"]),
        ("log()", ["6 of its 7 contracts", "outside [0, 1)", "-0.105"]),
    ],
)
def test_a_momentum_rule_with_other_outputs_is_reported(check_file, expression, messages):
    output = check_file(MOMENTUM.format(expression))
    for message in messages:
        assert message in output


def test_a_spectrum_that_exaggerates_is_reported(check_file):
    output = check_file(SPECTRUM.format("-"))
    assert "broken  flat_on_white" in output
    assert "broken  separates_slow_and_fast" in output


def test_a_constructor_must_have_the_context_of_its_room(check_file):
    assert "keeps all of its 6 contracts" in check_file(NORM.format(""))
    output = check_file(NORM.format("width"))
    assert "all of them with the same error" in output
    assert "width" in output.splitlines()[-1]
