"""The table of parts: registration, hyperparameters, context, and files of the user's own."""

import inspect

import pytest
import torch
from torch import nn

from famx import registry
from famx.notation import UserError, describe_exception, suggest
from famx.registry import PARTS, register

# the name that parts in this file are registered under
PART_NAME = "test_registry"


@pytest.fixture(autouse=True)
def table_of_parts(monkeypatch):
    """Restores the table after each test."""
    for room, parts in PARTS.items():
        monkeypatch.setitem(PARTS, room, dict(parts))


@pytest.fixture
def load(tmp_path):
    """Returns a function that loads a file `own.py` with the given text."""

    def run(text, name="own.py"):
        (tmp_path / name).write_text("from famx.registry import register\n" + text)
        return registry.load_file(tmp_path / name)

    return run


class Base(nn.Module):
    def __init__(self, d_model, *, width: int = 3, scale: float = 1.0, causal: bool = False):
        super().__init__()
        self.arguments = {"d_model": d_model, "width": width, "scale": scale, "causal": causal}


class Derived(Base):
    def __init__(self, *, scale: float = 2.0, pair: tuple[float, float] = (0.1, 0.2), **context):
        super().__init__(scale=scale, **context)
        self.pair = pair


# names and rooms


def test_part_of_the_package_is_named_after_its_file():
    part = registry.get("attention", "myelinated")
    assert part.__module__ == "famx.attention.myelinated"
    assert registry.room_of(part) == "attention"


def test_part_outside_the_package_is_named_after_its_file():
    decorated = register("norm")(Base)
    assert decorated is Base
    assert registry.get("norm", PART_NAME) is Base
    assert registry.room_of(Base) == "norm"
    assert registry.room_of(dict) is None


def test_class_that_is_no_part_belongs_to_the_room_of_its_module():
    from famx.attention.myelinated import Node

    assert registry.room_of(Node) == "attention"


def test_unknown_names_are_refused_with_the_closest_and_all_choices():
    with pytest.raises(UserError, match="norm=layrnorm: no such part; did you mean layernorm"):
        registry.get("norm", "layrnorm")
    with pytest.raises(UserError, match="norms: no such room; did you mean norm"):
        registry.names("norms")


@pytest.mark.parametrize("name", ["1e3", "nan", "null", "True", "off", "7"])
def test_name_that_yaml_reads_as_a_value_is_refused(name, load):
    with pytest.raises(UserError, match=f"cannot be named {name}, YAML reads it as a value"):
        load("@register('norm')\nclass Own: ...", f"{name}.py")


def test_name_default_is_refused(load):
    with pytest.raises(UserError, match="cannot be named default"):
        load("@register('norm')\nclass Own: ...", "default.py")


def test_same_file_can_be_loaded_again_but_no_other_part_takes_its_name(load, tmp_path):
    text = "@register('norm')\nclass Own: ..."
    assert load(text) == load(text) == [("norm", "own")]
    with pytest.raises(UserError, match=r"norm=own is already famx_parts\.own\.Own; rename"):
        load("@register('norm')\nclass Another: ...")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "registers no part"),
        ("x = 1 / 0", r"cannot be run: ZeroDivisionError: division by zero \(own.py, line 2\)"),
        ("def f(:", "cannot be run: SyntaxError"),
        ("@register\nclass Own: ...", "outside the package a part names its room"),
        ("@register('nrom')\nclass Own: ...", "in the room 'nrom'; did you mean norm"),
        ("@register('norm')\ndef own(): ...", "takes a class, but own is a function"),
    ],
)
def test_file_that_cannot_be_used_is_refused_in_a_sentence(text, message, load):
    with pytest.raises(UserError, match=message):
        load(text)


def test_path_that_is_no_python_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        registry.load_file(tmp_path / "nowhere.py")
    with pytest.raises(UserError, match="is a folder"):
        registry.load_file(tmp_path)
    (tmp_path / "part.txt").touch()
    with pytest.raises(UserError, match="is not a Python file"):
        registry.load_file(tmp_path / "part.txt")


# hyperparameters and context


def test_hyperparameters_are_those_of_all_constructors_that_pass_on():
    parameters = registry.hyperparameters(Derived)
    assert {key: p.default for key, p in parameters.items()} == {
        "width": 3,
        "scale": 2.0,
        "pair": (0.1, 0.2),
    }


def test_hyperparameters_end_at_a_constructor_that_passes_nothing_on():
    class Closed(Base):
        def __init__(self, d_model, *, depth: int = 1):
            super().__init__(d_model)

    assert list(registry.hyperparameters(Closed)) == ["depth"]


def test_context_is_what_the_signature_names_or_all_of_it():
    context = {"d_model": 8, "n_heads": 2}
    assert registry.select_context(Base, context) == {"d_model": 8}
    assert registry.select_context(Derived, context) == context


def test_required_argument_that_no_builder_passes_is_refused():
    expected = (
        r"Base\.__init__ has a required argument d_model, which no builder passes "
        r"\(available: n_heads, causal\); give it a default to make it a hyperparameter"
    )
    with pytest.raises(UserError, match=expected):
        registry.select_context(Base, {"n_heads": 2, "causal": True})


def test_build_passes_context_and_hyperparameters():
    register("norm")(Derived)
    config = {"name": PART_NAME, "width": 5, "pair": [0.5, 0.6]}
    part = registry.build("norm", config, d_model=8, causal=True)
    assert part.arguments == {"d_model": 8, "width": 5, "scale": 2.0, "causal": True}
    # configs hold lists
    assert part.pair == (0.5, 0.6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widht": 5}, r"norm=test_registry has no norm\.widht; did you mean width"),
        (
            {"pair": [0.5]},
            r"norm\.pair=\[0\.5\] must have 2 values, like its default \(0\.1, 0\.2\)",
        ),
        ({"scale": float("nan")}, r"norm\.scale=nan must be finite"),
        ({"pair": [0.5, float("inf")]}, r"norm\.pair=\[0\.5, inf\] must be finite"),
    ],
)
def test_wrong_hyperparameter_is_refused(config, message):
    register("norm")(Derived)
    with pytest.raises(UserError, match=message):
        registry.build("norm", {"name": PART_NAME, **config}, d_model=8)


def test_value_that_a_part_refuses_is_reported_with_its_name():
    @register("norm")
    class Refusing(nn.Module):
        def __init__(self, *, eps: float = 1.0):
            raise ValueError(f"eps={eps} is too large")

    with pytest.raises(UserError, match=r"norm=test_registry: eps=2\.0 is too large"):
        registry.build("norm", {"name": PART_NAME, "eps": 2.0})


def test_tuple_of_any_size_is_accepted():
    @register("norm")
    class Sizes(nn.Module):
        def __init__(self, *, sizes: tuple[int, ...] = (1, 2)):
            super().__init__()
            self.sizes = sizes

    assert registry.build("norm", {"name": PART_NAME, "sizes": [1, 2, 3]}).sizes == (1, 2, 3)


# messages


def test_exception_is_described_with_the_last_line_of_the_file():
    def fail():
        return torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError) as caught:
        fail()
    line = inspect.getsourcelines(fail)[1] + 1
    description = describe_exception(caught.value, __file__)
    assert description.startswith("RuntimeError: ")
    assert description.endswith(f"(test_registry.py, line {line})")
    assert "\n" not in description
    assert describe_exception(KeyError(), __file__) == "KeyError"


def test_suggestion_names_the_closest_choice_and_all_others():
    assert suggest("gellu", ["relu", "gelu"]) == "; did you mean gelu? (choices: gelu, relu)"
    assert suggest("tanh", ["relu", "gelu"]) == "; choose from gelu, relu"
    assert suggest("x", []) == ", it has none at all"
