"""Locations in Python sources: filler words, long lines, dense statements and other kinds."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# words of small talk, which say nothing about a value
FILLER_WORDS = """
    told found own seen kept held given taken asked spent each other chosen place places alike
    apart most least more rest before after said turned here there left drawn shown whole aside
    mine theirs ours worn usual beside some many few one two of at to
"""
# these can begin neither a verb phrase nor a noun phrase.
OPENING_WORDS = """
    what of who whose whom whatever whichever whoever whether that how where when why
    as by from to in
"""
FILLER = frozenset(FILLER_WORDS.split())
OPENINGS = frozenset(OPENING_WORDS.split())

# classes of nodes
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
DOCUMENTED = (*DEFINITIONS, ast.Module)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DENSE = (*COMPREHENSIONS, ast.Lambda, ast.IfExp)
IMPORTS = (ast.Import, ast.ImportFrom)
MAX_COLUMNS = 100


class Source(NamedTuple):
    path: Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


class Location(NamedTuple):
    line: int
    note: str


def is_python(path: Path) -> bool:
    """True for .py files and for scripts that start like scripts/benchmark."""
    if path.suffix == ".py":
        return True
    if path.suffix or not path.is_file():
        return False
    return path.read_bytes().startswith(b'#!/bin/sh\n"exec"')


def read_sources(folder: Path) -> list[Source]:
    """Parses the Python files below `folder`, except empty ones and hidden folders."""
    sources = []
    for path in sorted(folder.rglob("*")):
        hidden = any(
            part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts
        )
        if hidden or not is_python(path):
            continue
        text = path.read_text()
        if text:
            sources.append(Source(path, text, ast.parse(text, str(path))))
    return sources


def assigned_names(source: Source) -> Iterator[tuple[int, str]]:
    """Yields line and name of assigned variables and of parameters of functions.

    Not counted: attributes, `self`, `cls` of methods, parameters of lambdas, starred names.
    """
    starred: set[ast.expr] = set()
    methods: set[ast.stmt] = set()
    # ast.walk goes breadth first, so it meets a class before its methods, a star before its name
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Starred):
            starred.add(node.value)
        elif isinstance(node, ast.ClassDef):
            methods.update(item for item in node.body if isinstance(item, FUNCTIONS))
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store) and node not in starred:
                yield node.lineno, node.id
        elif isinstance(node, FUNCTIONS):
            for parameter in parameters(node):
                if node not in methods or parameter.arg not in ("self", "cls"):
                    yield parameter.lineno, parameter.arg


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Returns the parameters of `function`, without *args and **kwargs."""
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def filler(source: Source) -> Iterator[Location]:
    """Names of variables and parameters that are a filler word, such as `found`."""
    for line, name in assigned_names(source):
        if name.lower() in FILLER:
            yield Location(line, name)


def long_lines(source: Source) -> Iterator[Location]:
    """Lines over 100 columns."""
    for number, line in enumerate(source.lines, 1):
        if len(line) > MAX_COLUMNS:
            yield Location(number, f"{len(line)} columns")


def is_swap(target: ast.Tuple, value: ast.Tuple) -> bool:
    """True for `a, b = b, a` and other permutations."""
    return sorted(map(ast.unparse, target.elts)) == sorted(map(ast.unparse, value.elts))


def tuple_assignments(source: Source) -> Iterator[Location]:
    """Assignments such as `a, b = x, y`; swaps are allowed."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        for target in node.targets:
            if isinstance(target, ast.Tuple) and not is_swap(target, node.value):
                yield Location(node.lineno, ast.unparse(node))


def nested_comprehensions(source: Source) -> Iterator[Location]:
    """Comprehensions inside comprehensions."""
    nested: set[ast.AST] = set()
    for outer in ast.walk(source.tree):
        if isinstance(outer, COMPREHENSIONS):
            nested.update(node for node in ast.walk(outer) if node is not outer)
    # each once, however deep it is nested
    for node in nested:
        if isinstance(node, COMPREHENSIONS):
            yield Location(node.lineno, ast.unparse(node))


def statements(source: Source) -> Iterator[ast.stmt]:
    """Yields the statements of a source, except imports and definitions."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.stmt) and not isinstance(node, (*DEFINITIONS, *IMPORTS)):
            yield node


def dense_nodes(statement: ast.stmt) -> list[ast.AST]:
    """Returns the comprehensions, lambdas and conditional expressions of one statement.

    Statements in the body of a compound statement count for themselves.
    """
    matches: list[ast.AST] = []
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        if isinstance(node, DENSE):
            matches.append(node)
        pending.extend(
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)
        )
    return matches


def dense(source: Source) -> Iterator[Location]:
    """Statements with two or more comprehensions, lambdas or conditional expressions."""
    for statement in statements(source):
        count = len(dense_nodes(statement))
        if count > 1:
            first_line = ast.unparse(statement).partition("\n")[0]
            yield Location(statement.lineno, f"{count} in {first_line}")


def hasattr_protocols(source: Source) -> Iterator[Location]:
    """Calls of hasattr(), and of getattr() with a fixed name and a default."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        has_default = len(node.args) == 3 and isinstance(node.args[1], ast.Constant)
        if node.func.id == "hasattr" or (node.func.id == "getattr" and has_default):
            yield Location(node.lineno, ast.unparse(node))


def annotations(source: Source) -> Iterator[ast.expr]:
    for node in ast.walk(source.tree):
        annotation = None
        if isinstance(node, ast.arg | ast.AnnAssign):
            annotation = node.annotation
        elif isinstance(node, FUNCTIONS):
            annotation = node.returns
        if annotation is not None:
            yield annotation


def any_annotations(source: Source) -> Iterator[Location]:
    """Annotations that contain Any."""
    for annotation in annotations(source):
        text = ast.unparse(annotation)
        if re.search(r"\bAny\b", text):
            yield Location(annotation.lineno, text)


def docstrings(source: Source) -> Iterator[ast.Expr]:
    for node in ast.walk(source.tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            expression = node.body[0]
            assert isinstance(expression, ast.Expr)
            yield expression


def docstrings_opening(source: Source) -> Iterator[Location]:
    """Docstrings that open with What, Of, Who, How, By and the like."""
    for docstring in docstrings(source):
        text = ast.literal_eval(docstring.value).strip().partition("\n")[0]
        word = re.match(r"[A-Za-z]+", text)
        if word and word[0].lower() in OPENINGS:
            yield Location(docstring.lineno, text)


# the kinds that `--list` accepts
KINDS: dict[str, Callable[[Source], Iterator[Location]]] = {
    "filler": filler,
    "long_lines": long_lines,
    "tuple_assignments": tuple_assignments,
    "nested_comprehensions": nested_comprehensions,
    "dense": dense,
    "hasattr": hasattr_protocols,
    "any": any_annotations,
    "docstrings_opening": docstrings_opening,
}
