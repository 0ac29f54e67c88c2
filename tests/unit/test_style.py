"""Names say what a value is, and docstrings open with a verb or a noun phrase."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORBIDDEN_WORDS = """
    told found seen own kept held whole usual worn wears beside aside theirs ours mine spent
    given taken asked drawn shown alike dealt judge laws
"""
FORBIDDEN = frozenset(FORBIDDEN_WORDS.split())


def assigned_name(node: ast.AST) -> str:
    """Returns the name that a node gives to a variable, attribute, parameter or definition."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return name
        case ast.arg(arg=name) | ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
            return name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
    return ""


def violations(text: str) -> list[tuple[int, str]]:
    """Returns the lines of forbidden names and of docstrings that open with What, Of or Who."""
    problems = []
    for node in ast.walk(ast.parse(text)):
        # torch.amp.GradScaler sets `found_inf` on optimizers
        name = assigned_name(node).replace("found_inf", "")
        words = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)
        if FORBIDDEN.intersection(map(str.lower, words)):
            problems.append((node.lineno, name))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if re.match(r"(What|Of|Who)\b", docstring):
                problems.append((node.body[0].lineno, docstring.partition("\n")[0]))
    return sorted(problems)


def python_files() -> Iterator[Path]:
    for folder in ("famx", "scripts", "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    for path in sorted((ROOT / "scripts").iterdir()):
        if path.is_file() and path.read_bytes().startswith(b'#!/bin/sh\n"exec"'):
            yield path


def test_names_and_docstrings_are_plain():
    problems = []
    for path in python_files():
        for line, problem in violations(path.read_text()):
            problems.append(f"{path.relative_to(ROOT)}:{line}:{problem}")
    assert not problems, "\n".join(["", *problems])


def test_forbidden_names_and_openings_are_reported():
    text = '''class Usual:
    """What is usual."""
    def taken(self, the_own, *held, **kept_1):
        for first, spent in the_own:
            self.told: int = lambda seen: seen
    '''
    names = ["Usual", "taken", "the_own", "held", "kept_1", "spent", "told", "seen"]
    assert {name for _, name in violations(text)} == {*names, "What is usual."}


def test_plain_names_are_accepted():
    text = '''def message(found_inf, owner, hours, householder):
    """Whatsoever."""
    return found_inf.seen(own=owner)
    '''
    assert violations(text) == []
