"""`python -m famx.check` says which contracts a part breaks, and where."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from famx.check import main
from famx.notation import UserError
from famx.registry import PARTS

ATTENTION = '''\
"""A block of a user."""

import torch
from famx.attention.multihead import MultiheadAttention
from famx.registry import register


@register("attention")
class UserAttention(MultiheadAttention):
'''
# turns the sequence into its first position, and divides by zero
BROKEN_NORM = """
import torch
from famx.registry import register

@register("norm")
class BrokenNorm(torch.nn.Module):
    def __init__(self, d_model):
        super().__init__()

    def forward(self, x):
        return x[:, :1] / 0
"""


class Result(NamedTuple):
    """The exit status, the line of each contract by its name, and the last line."""

    status: int
    lines: dict[str, str]
    summary: str


@pytest.fixture(autouse=True)
def restore_parts(monkeypatch):
    for room, parts in PARTS.items():
        monkeypatch.setitem(PARTS, room, dict(parts))


@pytest.fixture
def check_attention(tmp_path, capsys):
    """Returns a function that checks an attention block with the body of its class."""

    def check(body: str, name: str = "user_block", words: tuple[str, ...] = ()) -> Result:
        file = tmp_path / f"{name}.py"
        file.write_text(ATTENTION + textwrap.indent(textwrap.dedent(body), "    "))
        status = main([str(file), *words])
        _, *lines, summary = capsys.readouterr().out.splitlines()
        by_contract = {line.split()[1].rstrip(":"): line.strip() for line in lines}
        return Result(status, by_contract, summary)

    return check


# attention blocks


def test_a_part_that_keeps_all_contracts_is_accepted(check_attention):
    result = check_attention("pass")
    assert result.status == 0
    assert len(result.lines) >= 16
    assert all(line.startswith("kept ") for line in result.lines.values())
    n = len(result.lines)
    assert result.summary == f"attention=user_block keeps all of its {n} contracts"


def test_a_block_that_is_not_causal_is_reported(check_attention):
    result = check_attention(
        """
        def mix(self, q, k, v, mask, causal):
            return super().mix(q, k, v, mask, causal=False)
        """
    )
    assert result.status == 2
    assert result.summary.startswith("attention=user_block breaks 1 of its ")
    assert result.summary.endswith(" contracts: causal")
    line = result.lines["causal"]
    assert line.startswith("broken  causal: leaks the future: output at t=0 changes")


def test_a_block_that_mixes_samples_is_reported(check_attention):
    result = check_attention(
        """
        def forward(self, x, memory=None, mask=None, state=None):
            return super().forward(x - x.mean(0, keepdim=True), memory, mask, state)
        """
    )
    assert result.status == 2
    assert "batch_independent" in result.summary
    expected = "broken  batch_independent: sample 0 depends on its batch-mates"
    assert result.lines["batch_independent"] == expected


def test_a_fault_of_long_sequences_is_reported(check_attention):
    result = check_attention(
        """
        def mix(self, q, k, v, mask, causal):
            y = super().mix(q, k, v, mask, causal)
            return y + v[:, :, -1:].mean(0, keepdim=True) if v.shape[2] >= 100 else y
        """
    )
    assert result.status == 2
    assert "output at t=0 changes when x at t=" in result.lines["causal"]
    assert "sample 0 depends on its batch-mates" in result.lines["batch_independent"]
    assert "131" in result.lines["batch_independent"]


def test_a_message_that_many_contracts_share_is_printed_once(check_attention):
    result = check_attention(
        """
        def mix(self, q, k, v, mask, causal):
            return super().mix(q, k, v, mask, causal) * float("nan")
        """
    )
    lines = list(result.lines.values())
    assert result.lines["shape"] == "broken  shape: an output is not finite"
    assert sum(line.endswith(": an output is not finite") for line in lines) == 1
    assert sum(line.endswith(": same error as shape") for line in lines) > 4
    assert result.summary.endswith("with the same error: an output is not finite")


def test_parameters_without_a_gradient_are_named(check_attention):
    result = check_attention(
        """
        def __init__(self, **context):
            super().__init__(**context)
            self.w = torch.nn.Parameter(torch.zeros(3))
            self.u = torch.nn.Parameter(torch.zeros(2))
        """
    )
    assert result.status == 2
    broken = ("every_gradient", "every_gradient_in_a_stack", "every_gradient_of_a_decoder")
    assert result.summary.endswith(f" contracts: {', '.join(broken)}")
    line = result.lines["every_gradient"]
    assert line == "broken  every_gradient: parameters w, u get no gradient"


def test_a_crash_breaks_the_contract_that_it_happens_in(check_attention):
    result = check_attention(
        """
        exempt = {"causal": "it [looks] both ways"}

        def __init__(self, *, min_length: int = 1, **context):
            super().__init__(**context)
            self.min_length = min_length

        def forward(self, x, memory=None, mask=None, state=None):
            if x.shape[1] < self.min_length:
                raise TypeError("too [short]\\nfor it")
            return super().forward(x, memory, mask, state)
        """,
        words=("attention.min_length=3",),
    )
    assert result.status == 2
    assert result.summary.endswith(" contracts: one_position")
    # in one line, with brackets that are no markup, and the line of the user's file
    crash = "TypeError: too [short] (user_block.py, line 19)"
    assert result.lines["one_position"] == f"broken  one_position: {crash}"
    assert result.lines["causal"] == "exempt  causal: it [looks] both ways"


def test_differences_are_printed_as_numbers(check_attention):
    result = check_attention(
        """
        def forward(self, x, memory=None, mask=None, state=None):
            y = super().forward(x, memory, mask, state)
            return y * (1.5 if y.dtype == torch.bfloat16 else 1)
        """
    )
    assert "50%" in result.lines["half_precision"]


# what cannot be checked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("x = 1", "registers no part"),
        ("from famx.attention.multihead import MultiheadAttention", "registers no part"),
        ("x = 1 / 0", r"user\.py cannot be run: ZeroDivisionError: .* \(user\.py, line 1\)"),
        ("def f(:", r"user\.py cannot be run: SyntaxError: "),
        ("@register\nclass User: ...", r'names its room, as in @register."attention".'),
        ('@register("atention")\nclass User: ...', "did you mean attention"),
        ('@register("norm")\ndef user(d_model): ...', "takes a class, but user is"),
        (
            '@register("norm")\nclass User:\n    exempt = {"shap": "why"}',
            "exempt from shap, which is not a contract of its room; did you mean shape",
        ),
    ],
)
def test_a_file_that_cannot_be_checked_is_refused(tmp_path, text, message):
    file = tmp_path / "user.py"
    if text is not None:
        needs_import = text.startswith("@register")
        file.write_text("from famx.registry import register\n" * needs_import + text)
    with pytest.raises(UserError, match=message):
        main([str(file)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attention"], "attention is a room: give attention=NAME; choose from adaptive_span,"),
        (["norm="], "norm is a room: give norm=NAME; choose from layernorm, rmsnorm"),
        (["nrm=layernorm"], "no such room; did you mean norm"),
        (["."], "is a folder, give one file"),
        (["norm=layernorm", "norm=rmsnrm"], "did you mean rmsnorm"),
        (["norm=rmsnorm", "norm.epps=1"], "did you mean eps"),
        (["norm=rmsnorm", "attention.keys=1"], "no part of the room attention is checked"),
        ([str(Path(__file__).parents[2] / "README.md")], "no Python file|not a Python file"),
    ],
)
def test_words_that_name_no_part_are_refused(words, message, capsys):
    with pytest.raises(UserError, match=message):
        main(words)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_the_command_finds_the_same_under_python_O(tmp_path):  # noqa: N802
    (tmp_path / "broken.py").write_text(BROKEN_NORM)
    outputs = []
    for options in ([], ["-O"]):
        done = subprocess.run(
            [sys.executable, *options, "-m", "famx.check", "broken.py"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "40"},
            timeout=120,
        )
        assert done.returncode == 2
        assert not done.stderr
        outputs.append(done.stdout)
    # a contract is no assert statement, which -O removes
    normal, optimized = outputs
    assert optimized == normal
    lines = normal.splitlines()
    assert lines[1].strip() == "broken  shape: turns (2, 5, 24) into (2, 1, 24)"
    n_broken = sum(line.strip().startswith("broken") for line in lines)
    assert n_broken > 1
    assert lines[-1].startswith(f"norm=broken breaks {n_broken} of its ")
