"""Import layers, exemptions from contracts, and configs that name parts but no code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import famx
from famx.registry import PARTS, ROOMS

PACKAGE = Path(famx.__file__).parent
# from the bottom to the top: a module imports modules of lower layers only
LAYERS = (
    {"notation"},
    {"validate", "files", "seeding"},
    {"registry"},
    {"kernels"},
    {"nn"},
    {"config", *ROOMS},
    {"model"},
    {"training"},
    {"monitoring"},
    {"contracts", "analysis"},
    {"experiment"},
    {"inference"},
    {
        "train",
        "evaluate",
        "transcribe",
        "translate",
        "spectra",
        "compare",
        "panel",
        "parts",
        "check",
        "replay",
        "export",
        "generate",
        "completion",
        "__main__",
    },
)
# commands may call each other
COMMANDS = LAYERS[-1]
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
# contracts that the classes of a module declare themselves exempt from
TORCH_STEP = {"meta", "no_host_read"}
EXEMPTIONS = {
    "famx.optim._torch": TORCH_STEP,
    "famx.optim._wrapper": TORCH_STEP,
    "famx.spectrum.shuffled": {"sums_to_one", "flat_on_white", "separates_slow_and_fast"},
    "famx.rotary.variable_radii": {"norm_unchanged"},
    "famx.rotary.learned_rotations": {"depends_on_distance_alone"},
    "famx.rotary.axial": {"depends_on_distance_alone"},
}


def module_of(path: Path) -> str:
    """Returns the module or package directly below `famx` that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def source_files() -> Iterator[Path]:
    """Yields the files of the package, except `famx/__init__.py`, which may import any module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent != PACKAGE or path.stem != "__init__":
            yield path


def imported_modules(path: Path) -> set[str]:
    """Returns the modules below `famx` that a file imports, at its top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which module is imported"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("famx.")}


def test_every_module_is_in_a_layer():
    assert {module_of(path) for path in source_files()} == set(LAYER_OF)


def test_modules_import_lower_layers_only():
    for path in source_files():
        module = module_of(path)
        for imported in imported_modules(path) - {module}:
            is_lower = LAYER_OF[imported] < LAYER_OF[module]
            are_commands = {module, imported} <= COMMANDS
            assert is_lower or are_commands, f"{path} imports famx.{imported}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_no_other_room(room):
    for path in (PACKAGE / room).rglob("*.py"):
        imported_rooms = imported_modules(path) & set(ROOMS)
        assert imported_rooms <= {room}, path


def test_exemptions_of_contracts_are_those_that_are_listed():
    classes = set()
    for parts in PARTS.values():
        for part in parts.values():
            classes.update(part.__mro__)
    declared = {cls.__module__: {*cls.exempt} for cls in classes if "exempt" in vars(cls)}
    assert declared == EXEMPTIONS


def test_no_config_can_name_code():
    # hydra.utils.instantiate would call whatever a key `_target_` names
    configs = list((PACKAGE.parent / "conf").rglob("*.yaml"))
    assert configs
    # the module that refuses such keys names them
    refusing = PACKAGE / "config" / "composition.py"
    for path in {*PACKAGE.rglob("*.py"), *configs} - {refusing}:
        assert "_target_" not in path.read_text(), path
