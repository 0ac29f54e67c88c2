"""An own block's faults are told in words, each by the law that it breaks."""

import os
import subprocess
import sys
import textwrap

import pytest

from famx.check import main
from famx.notation import UserError
from famx.registry import PARTS

HEAD = '''\
"""A block of somebody's own."""

import torch
from famx.attention.multihead import MultiheadAttention
from famx.registry import register


@register("attention")
class Own(MultiheadAttention):
'''


@pytest.fixture(autouse=True)
def table_as_before(monkeypatch):
    for room, parts in PARTS.items():
        monkeypatch.setitem(PARTS, room, dict(parts))


@pytest.fixture
def checked(tmp_path, capsys):
    """What is said of the attention block of the given body: the exit status, each law's line, and the last line."""

    def check(body, name="own", words=()):
        file = tmp_path / f"{name}.py"
        file.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "))
        status = main([str(file), *words])
        *lines, last = capsys.readouterr().out.splitlines()
        return status, {line.split()[1].rstrip(":"): line.strip() for line in lines[1:]}, last

    return check


def test_a_block_that_keeps_every_law_is_told_so(checked):
    status, lines, last = checked("""pass""")
    assert (
        status == 0
        and len(lines) >= 16
        and all(line.startswith("kept ") for line in lines.values())
    )
    assert last == f"attention=own keeps all of its {len(lines)} laws"


def test_a_block_that_looks_ahead_leaks_the_future(checked):
    status, lines, last = checked(
        """
        def mix(self, q, k, v, mask, causal):
            return super().mix(q, k, v, mask, causal=False)
        """,
        "ahead",
    )
    assert (
        status == 2
        and last.startswith("attention=ahead breaks 1 of its ")
        and last.endswith(" laws: causal")
    )
    assert (
        lines["causal"]
        == "broken  causal: leaks the future: output at t=0 changes when x at t=1 does"
    )


def test_a_block_that_mixes_samples_depends_on_its_batch_mates(checked):
    status, lines, last = checked(
        """
        def forward(self, x, memory=None, mask=None, state=None):
            return super().forward(x - x.mean(0, keepdim=True), memory, mask, state)
        """,
        "crowd",
    )
    assert status == 2 and "batch_independent" in last
    assert (
        lines["batch_independent"]
        == "broken  batch_independent: sample 0 depends on its batch-mates"
    )


def test_what_goes_wrong_in_long_sequences_alone_is_found(checked):
    status, lines, _ = checked(
        """
        def mix(self, q, k, v, mask, causal):
            y = super().mix(q, k, v, mask, causal)
            return y + v[:, :, -1:].mean(0, keepdim=True) if v.shape[2] >= 100 else y
        """,
        "late",
    )
    assert status == 2 and "output at t=0 changes when x at t=" in lines["causal"]
    assert lines["batch_independent"].endswith(
        "sample 0 depends on its batch-mates where it has 131 positions"
    )


def test_what_is_not_finite_is_told_so(checked):
    _, lines, last = checked(
        """
        def mix(self, q, k, v, mask, causal):
            return super().mix(q, k, v, mask, causal) * float("nan")
        """,
        "void",
    )
    assert lines["shape"] == "broken  shape: an output is not finite"
    for law in (
        "other_length",
        "mask_obeyed",
        "causal",
        "batch_independent",
        "deterministic",
        "compiles",
    ):
        assert lines[law] == f"broken  {law}: as shape"
    assert last.endswith("by one fault: an output is not finite")


def test_a_parameter_without_a_gradient_is_named(checked):
    status, lines, last = checked(
        """
        def __init__(self, **context):
            super().__init__(**context)
            self.w, self.u = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
        """,
        "idle",
    )
    assert status == 2 and last.endswith(" laws: every_gradient")
    assert lines["every_gradient"] == "broken  every_gradient: parameters w, u get no gradient"


def test_a_crash_is_the_failure_of_the_law_it_falls_in(checked):
    status, lines, last = checked(
        """
        exempt = {"causal": "it [looks] both ways"}

        def __init__(self, *, least: int = 1, **context):
            super().__init__(**context)
            self.least = least

        def forward(self, x, memory=None, mask=None, state=None):
            if x.shape[1] < self.least:
                raise TypeError("too [short]\\nfor it")
            return super().forward(x, memory, mask, state)
        """,
        "picky",
        ["attention.least=3"],
    )
    assert status == 2 and last.endswith(" laws: one_position")
    assert (
        lines["one_position"] == "broken  one_position: TypeError: too [short] (picky.py, line 19)"
    )
    assert lines["causal"] == "exempt  causal: it [looks] both ways"


def test_parts_of_the_package_are_checked_by_name(capsys):
    assert main(["norm=rmsnorm", "norm.eps=1e-5", "schedule=constant"]) == 0
    assert main(["spectrum=shuffled"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        "but sums_to_one, flat_on_white, separates_slow_and_fast, from which it is exempt"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no file"),
        ("x = 1", "registers no part"),
        ("from famx.attention.multihead import MultiheadAttention", "registers no part"),
        (
            "x = 1 / 0",
            r"own\.py cannot be run: ZeroDivisionError: division by zero \(own\.py, line 1\)",
        ),
        ("def f(:", r"own\.py cannot be run: SyntaxError: "),
        (
            "from famx.registry import register\n@register\nclass Own: ...",
            'names its room, @register."attention".',
        ),
        (
            'from famx.registry import register\n@register("atention")\nclass Own: ...',
            "did you mean attention",
        ),
        (
            'from famx.registry import register\n@register("norm")\ndef own(d_model): ...',
            "takes a class, but own is",
        ),
        (
            'from famx.registry import register\n@register("norm")\nclass Own:\n    exempt = {"shap": "why"}',
            "exempt from shap, which is no law of its room; did you mean shape",
        ),
    ],
)
def test_a_file_that_cannot_be_checked_is_refused_in_a_sentence(tmp_path, text, told):
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=told):
        main([str(file)])


def test_a_value_that_the_part_refuses_is_told_once(capsys):
    assert main(["optim=fam", "optim.alpha=3"]) == 2
    *lines, last = capsys.readouterr().out.splitlines()
    n = len(lines) - 1
    assert (
        f"breaks {n} of its {n} laws, all of them by one fault: ValueError: alpha=3.0 is not"
        in last
    )
    assert (
        sum("alpha" in line for line in lines) == 1
        and sum(": as descends" in line for line in lines) == n - 1
    )


PLAIN = """
import torch
from famx.registry import register

@register("optim")
class Own(torch.optim.Optimizer):
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
from famx.momentum.base import Momentum
from famx.registry import register

@register("momentum")
class Own(Momentum):
    def forward(self, gradients, step):
        return self.base.{}
"""
SPECTRUM = """
import torch
from famx.registry import register
from famx.spectrum.contiguous import Contiguous

@register("spectrum")
class Own(Contiguous):
    def forward(self, gradients):
        return torch.nn.functional.one_hot({}(super().forward(gradients)).argmax(1), self.most_bands).float()
"""
SIZED = """
import torch
from famx.registry import register

@register("norm")
class Own(torch.nn.LayerNorm):
    def __init__(self, {}):
        super().__init__(24)
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            PLAIN,
            [
                "broken  decays_the_weights: weight_decay=0.1 goes before the weight_decay=0 of a group",
                "broken  returns_the_loss_of_a_closure: step(closure) returns None, not the loss",
                "broken  non_finite: steps on a gradient that is nan",
                "kept    watching_changes_nothing",
            ],
        ),
        (
            PLAIN.replace("+ self.decay * p", ""),
            ["broken  decays_the_weights: weight_decay=0.1 changes nothing"],
        ),
        (
            MOMENTUM.format("unbind()"),
            [
                "7 of its 7 laws, all of them by one fault: gives a tuple, not a tensor of 6 coefficients"
            ],
        ),
        (
            MOMENTUM.format("view(1, -1)"),
            ["gives a tensor of shape (1, 6), not of 6 coefficients", "laws, all of them"],
        ),
        (
            MOMENTUM.format("log()"),
            [
                "6 of its 7 laws, all of them by one fault: a coefficient is outside [0, 1) at step 1: -0.105"
            ],
        ),
        (
            SPECTRUM.format("torch.neg"),
            [
                "off its share, not less than 25%",
                "0.00 of its power, not more than 0.8",
                "a tensor (40, 300) of kind other",
            ],
        ),
        (SIZED.format("dim"), ["all of them by one fault: Own asks for dim, but is given d_model"]),
        (SIZED.format(""), ["keeps all of its 6 laws"]),
    ],
)
def test_parts_of_other_rooms_are_told_in_words_what_they_are_short_of(
    tmp_path, capsys, text, told
):
    (tmp_path / "own.py").write_text(text)
    main([str(tmp_path / "own.py")])
    out = capsys.readouterr().out
    for words in told:
        assert words in out, out
    assert "Error" not in out.replace("AttributeError: 'Own' object has no attribute 'decay'", "")


def test_numbers_are_told_with_what_they_are_off(checked):
    _, lines, _ = checked(
        """
        def forward(self, x, memory=None, mask=None, state=None):
            y = super().forward(x, memory, mask, state)
            if state is not None:
                state["seen"] = state.get("seen", 0) + x.shape[1]
                y = y * (1 + (state["seen"] == 3))
            return y * (1.5 if y.dtype == torch.bfloat16 else 1)
        """,
        "rough",
    )
    assert (
        "with a state differs from the whole pass, first at t=2, by 1 of the largest entry"
        in lines["causal"]
    )
    assert lines["half_precision"].endswith("off by 50% of its largest entry, more than a tenth")


def test_words_that_choose_nothing_are_refused(tmp_path, capsys):
    for words, told in (
        (
            ["attention"],
            "attention is a room: give attention=NAME; choose from adaptive_span, alibi",
        ),
        (["norm="], "norm is a room: give norm=NAME; choose from layernorm, rmsnorm"),
        ([str(tmp_path)], "is a folder, give one file"),
        (["norm=layernorm", "norm=rmsnrm"], "did you mean rmsnorm"),
        (["norm=rmsnorm", "norm.epps=1"], "did you mean eps"),
        (["norm=rmsnorm", "attention.keys=1"], "no part of the room attention is checked"),
        (["README.md"], "no Python file"),
    ):
        with pytest.raises(UserError, match=told):
            main(words)
        assert not capsys.readouterr().out


def test_the_verb_says_which_law_is_broken_and_exits_with_2(tmp_path):
    (tmp_path / "flat.py").write_text(
        'import torch\nfrom famx.registry import register\n\n\n@register("norm")\nclass Flat(torch.nn.Module):\n'
        "    def __init__(self, d_model): super().__init__()\n    def forward(self, x): return x[:, :1]\n"
    )
    command, environment = (
        [sys.executable, "-m", "famx.check", "flat.py"],
        os.environ | {"COLUMNS": "40"},
    )
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert done.returncode == 2 and not done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "  broken  shape: turns (2, 5, 24) into (2, 1, 24)"
    assert lines[-1].startswith("norm=flat breaks ")
