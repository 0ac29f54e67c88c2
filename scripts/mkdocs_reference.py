"""Adds a page of API reference for each package of famx, and one for the modules beside them."""

from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from famx.registry import ROOMS

PACKAGE = Path(__file__).parents[1] / "famx"
PACKAGE_PAGE = """# famx

::: famx
    options: {show_root_heading: false, show_submodules: false, summary: false}
"""
SUBPACKAGE_PAGE = """# famx.{name}

::: famx.{name}
    options: {{show_root_heading: false, show_root_toc_entry: false}}
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the reference to the navigation: the rooms, then the machinery."""
    packages = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    rooms = [name for name in ROOMS if name in packages]
    machinery = [name for name in packages if name not in ROOMS]
    pages = [{f"famx.{name}": f"reference/{name}.md"} for name in (*rooms, *machinery)]
    config.nav = [*config.nav, {"Reference": [{"famx": "reference/famx.md"}, *pages]}]
    config.watch.append(str(PACKAGE))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generates the pages, each of which mkdocstrings fills from the docstrings."""
    modules = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
    blocks = [PACKAGE_PAGE]
    blocks += [f"::: famx.{name}\n" for name in modules]
    files.append(File.generated(config, "reference/famx.md", content="\n".join(blocks)))
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        name = path.parent.name
        content = SUBPACKAGE_PAGE.format(name=name)
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


class UsageInDocstrings(griffe.Extension):
    """Shows `[--a] [--b]` as text, which Markdown would read as a link from one to the other."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Puts two spaces between the brackets, which a browser shows as one."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("] [", "]  [")
