"""The tables of docs/seed.md name every class and method of the notes, and places that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES, NOTES = (ROOT / "docs" / "seed.md").read_text().split("\n---\n", 1)
ROWS = [line for line in TABLES.splitlines() if line.startswith("| ") and "---" not in line]
PLACES = sorted(set(re.findall(r"`((?:famx|tests|conf)/[^`]+)`", "\n".join(ROWS))))


def defined_names(path):
    """Returns the functions, classes and constants at the top of a file, and its methods."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("place", PLACES)
def test_every_place_and_test_of_the_tables_exists(place):
    file, _, name = place.partition("::")
    assert (ROOT / file).is_file()
    if name:
        assert name in defined_names(ROOT / file)


def test_every_class_and_method_of_the_notes_is_in_the_tables():
    defined = set(re.findall(r"^\s*(?:class|def)\s+(\w+)", NOTES, re.MULTILINE))
    # helpers inside another method
    helpers = {name for name in defined if re.search(rf"^ {{8,}}def {name}\(", NOTES, re.MULTILINE)}
    defined -= {name for name in helpers if name.startswith("_") and name != "__init__"}
    missing = {name for name in defined - {"__init__"} if f"`{name}`" not in TABLES}
    assert not missing


def test_every_option_of_a_constructor_of_the_notes_is_in_the_tables():
    # what every module or optimizer is built with, which is no option
    context = {"self", "params", "optimizer", "last_epoch", "dim", "dims", "head", "heads"}
    options = set()
    for signature in re.findall(r"def __init__\((.*?)\):", NOTES, re.DOTALL):
        options |= set(re.findall(r"(\w+)\s*(?:=[^,]*)?(?:,|$)", signature.strip()))
    missing = {name for name in options - context if f"`{name}`" not in TABLES}
    assert options and not missing


def test_every_row_names_a_test():
    for row in ROWS:
        if not row.startswith("| seed |"):
            assert "::" in row.split("|")[3], row
