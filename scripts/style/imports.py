"""The import graph of a folder, and its cycles."""

import ast
from collections.abc import Sequence
from pathlib import Path

from style.locations import Source


def import_graph(folder: Path, sources: Sequence[Source]) -> dict[str, set[str]]:
    """Returns the modules of `folder` that each imports: at the top, in functions, for types."""
    # names by which files of the folder can be imported
    modules: dict[str, Source] = {}
    for source in sources:
        parts = [*source.path.relative_to(folder).with_suffix("").parts]
        if (folder / "__init__.py").exists():
            parts.insert(0, folder.resolve().name)
        modules[".".join(parts).removesuffix(".__init__")] = source

    # what each file imports; `from package import name` may mean a module or its content
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, source in modules.items():
        parts = module.split(".")
        package = parts if source.path.name == "__init__.py" else parts[:-1]
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                graph[module].update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) + 1 - node.level] if node.level else []
                origin = ".".join([*base, *filter(None, [node.module])])
                for alias in node.names:
                    submodule = f"{origin}.{alias.name}"
                    graph[module].add(submodule if submodule in modules else origin)
    # modules of the folder only
    return {module: (imported & graph.keys()) - {module} for module, imported in graph.items()}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    visited: set[str] = set()
    pending = [start]
    while pending:
        following = graph[pending.pop()] - visited
        visited |= following
        pending.extend(following)
    return visited


def import_cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Returns the groups of modules that import each other, directly or not."""
    descendants = {module: reachable(graph, module) for module in graph}
    cycles = set()
    # a module that reaches itself is in a cycle, with all that it reaches and that reach it
    for module, imported in descendants.items():
        if module in imported:
            cycles.add(frozenset(member for member in imported if module in descendants[member]))
    return cycles
