"""YAML of other people: read within limits of size, depth and repetition."""

from pathlib import Path
from typing import Any

import yaml

from famx.notation import UserError

MAX_CHARACTERS = 2**20
MAX_DEPTH = 64
MAX_NODES = 100_000  # with every alias counted as the node that it repeats


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML document.

    Raises:
        YAMLError: it is not YAML, too large or too deep, or a number or a date has no value.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(
            f"it has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read"
        )
    try:
        return yaml.load(text, _LimitedLoader)
    # PyYAML raises ValueError for integers of thousands of digits and for dates
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def read_yaml(file: Path) -> Any:
    """Returns the value of a YAML file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


class _LimitedLoader(yaml.SafeLoader):
    """A loader of plain values, which counts nodes before any value is built.

    Ten lists, each with ten aliases of the one before, would be 10^10 values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[object, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        # an alias of a node that is not complete refers to itself
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self.sizes:
                raise yaml.YAMLError("an alias is a part of what it repeats")
            return node
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        # all values below this node
        self.sizes[node] = 1
        if isinstance(node, yaml.SequenceNode):
            self.sizes[node] += sum(self.sizes[item] for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            self.sizes[node] += sum(self.sizes[k] + self.sizes[v] for k, v in node.value)
        if self.sizes[node] > MAX_NODES:
            raise yaml.YAMLError(f"it has more than {MAX_NODES:,} values")
        return node
