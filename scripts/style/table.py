"""Rows of the style table: each function returns {row: text} of one folder."""

import ast
import re
import tokenize
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from statistics import median

from style.imports import import_cycles, import_graph
from style.locations import (
    COMPREHENSIONS,
    FUNCTIONS,
    KINDS,
    Source,
    assigned_names,
    dense_nodes,
    docstrings,
    is_python,
    parameters,
    read_sources,
    statements,
)

# statements that have no body, except imports
SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return, ast.Raise, ast.Assert)


def count(sources: Sequence[Source], kind: str) -> int:
    """Counts the locations of one kind."""
    return sum(1 for source in sources for _ in KINDS[kind](source))


def walk(sources: Sequence[Source]) -> Iterator[ast.AST]:
    for source in sources:
        yield from ast.walk(source.tree)


def percent(part: int, total: int) -> str:
    return f"{100 * part / max(1, total):.1f} %"


def per_hundred(part: int, total: int) -> str:
    return f"{100 * part / max(1, total):.2f}"


def count_and_percent(part: int, total: int) -> str:
    return f"{part:,} of {total:,} = {percent(part, total)}"


def count_over(values: Sequence[int], limit: int) -> int:
    return sum(value > limit for value in values)


def share_over(values: Sequence[int], limit: int) -> str:
    return percent(count_over(values, limit), len(values))


def spread(values: Sequence[int], quantiles: Sequence[float]) -> str:
    """Formats the median, quantiles by nearest rank, and the maximum."""
    ordered = sorted(values) or [0]
    ranks = [round(quantile * (len(ordered) - 1)) for quantile in quantiles]
    numbers = [median(ordered), *(ordered[rank] for rank in ranks), ordered[-1]]
    return " / ".join(f"{number:.0f}" for number in numbers)


def size_rows(sources: Sequence[Source]) -> dict[str, str]:
    file_lengths = [len(source.lines) for source in sources]
    functions = [node for node in walk(sources) if isinstance(node, FUNCTIONS)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    # parameters of constructors, without self
    constructors = [len(parameters(node)) - 1 for node in functions if node.name == "__init__"]
    return {
        "files": f"{len(sources):,}",
        "lines": f"{sum(file_lengths):,}",
        "file length median / p90 / max": spread(file_lengths, [0.9]),
        "functions": f"{len(functions):,}",
        "function length median / p90 / p99 / max": spread(lengths, [0.9, 0.99]),
        "functions over 60 lines (over 40)": (
            f"{count_over(lengths, 60)} ({count_over(lengths, 40)})"
        ),
        "widest constructor": f"{max(constructors, default=0)}",
    }


def comment_counts(source: Source) -> tuple[int, int]:
    """Returns how many lines are comments, and how many comments there are."""
    comments = [
        token
        for token in tokenize.generate_tokens(StringIO(source.text).readline)
        if token.type == tokenize.COMMENT
    ]
    full_lines = sum(token.line.strip().startswith("#") for token in comments)
    return full_lines, len(comments)


def documentation_rows(sources: Sequence[Source]) -> dict[str, str]:
    # how many lines are comments or docstrings
    comment_lines = 0
    comments = 0
    docstring_lines = 0
    docstring_count = 0
    for source in sources:
        full_lines, all_comments = comment_counts(source)
        comment_lines += full_lines
        comments += all_comments
        for docstring in docstrings(source):
            docstring_count += 1
            docstring_lines += (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    all_lines = sum(len(source.lines) for source in sources)
    filled_lines = sum(bool(line.strip()) for source in sources for line in source.lines)

    # which functions have docstrings and annotations
    functions = [node for node in walk(sources) if isinstance(node, FUNCTIONS)]
    public = [node for node in functions if not node.name.startswith("_")]
    documented = [node for node in public if ast.get_docstring(node) is not None]
    arguments: list[ast.arg] = []
    for node in functions:
        arguments.extend(item for item in parameters(node) if item.arg not in ("self", "cls"))
    annotated = [argument for argument in arguments if argument.annotation is not None]
    # docstrings that open with the wrong word
    openings = count(sources, "docstrings_opening")
    return {
        "comment lines (of non-blank lines)": percent(comment_lines, filled_lines),
        "lines with a comment (of all lines)": percent(comments, all_lines),
        "docstring lines (of all lines)": percent(docstring_lines, all_lines),
        "public functions with a docstring": percent(len(documented), len(public)),
        "docstrings opening with What, Of, Who, ...": count_and_percent(openings, docstring_count),
        "arguments annotated": percent(len(annotated), len(arguments)),
    }


def is_tangled(statement: ast.stmt) -> bool:
    """True for two comprehensions, or one with two conditions or lambdas, in one statement."""
    nodes = dense_nodes(statement)
    comprehensions = sum(isinstance(node, COMPREHENSIONS) for node in nodes)
    return comprehensions >= 2 or (comprehensions == 1 and len(nodes) >= 3)


def density_rows(sources: Sequence[Source]) -> dict[str, str]:
    # expressions and line widths
    widths = [len(line) for source in sources for line in source.lines]
    wide = [share_over(widths, limit) for limit in (100, 110, 120)]
    comprehensions = sum(isinstance(node, COMPREHENSIONS) for node in walk(sources))
    nested = count(sources, "nested_comprehensions")
    conditions = sum(isinstance(node, ast.IfExp) for node in walk(sources))
    assignments = sum(isinstance(node, ast.Assign) for node in walk(sources))

    # statements that hold several expressions
    all_statements = 0
    simple_statements = 0
    tangled = 0
    for source in sources:
        for statement in statements(source):
            all_statements += 1
            if isinstance(statement, SIMPLE):
                simple_statements += 1
                tangled += is_tangled(statement)
    return {
        "lines over 100 / 110 / 120 columns": " / ".join(wide),
        "comprehensions per 100 lines": per_hundred(comprehensions, len(widths)),
        "conditional expressions per 100 lines": per_hundred(conditions, len(widths)),
        "comprehensions inside comprehensions": f"{nested}",
        "statements with two dense expressions": count_and_percent(
            count(sources, "dense"), all_statements
        ),
        "  two comprehensions, or one and two others": count_and_percent(
            tangled, simple_statements
        ),
        "tuple assignments (of assignments)": count_and_percent(
            count(sources, "tuple_assignments"), assignments
        ),
    }


def naming_rows(sources: Sequence[Source]) -> dict[str, str]:
    names = sum(1 for source in sources for _ in assigned_names(source))
    return {
        "filler words among names assigned": count_and_percent(count(sources, "filler"), names),
    }


def is_interface(node: ast.ClassDef) -> bool:
    bases = [*node.bases, *(keyword.value for keyword in node.keywords)]
    return any(re.search(r"\b(Protocol|ABC|ABCMeta)\b", ast.unparse(base)) for base in bases)


def structure_rows(folder: Path, sources: Sequence[Source]) -> dict[str, str]:
    interfaces = sum(
        isinstance(node, ast.ClassDef) and is_interface(node) for node in walk(sources)
    )
    # what `ls` shows, by kind
    modules = [path for path in folder.iterdir() if is_python(path) and path.name[:2] != "__"]
    packages = [path for path in folder.iterdir() if (path / "__init__.py").exists()]
    return {
        "hasattr(), getattr() with a name and a default": f"{count(sources, 'hasattr')}",
        "annotations with Any": f"{count(sources, 'any')}",
        "Protocol and ABC classes": f"{interfaces}",
        "top-level modules / packages": f"{len(modules)} / {len(packages)}",
        "import cycles": f"{len(import_cycles(import_graph(folder, sources)))}",
    }


def measure(folder: Path) -> dict[str, str]:
    sources = read_sources(folder)
    return {
        **size_rows(sources),
        **documentation_rows(sources),
        **density_rows(sources),
        **naming_rows(sources),
        **structure_rows(folder, sources),
    }
