"""Which module may import which, and which class may declare an exemption from a contract."""

import ast
from pathlib import Path

import famx
from famx.registry import PARTS, ROOMS

ROOT = Path(famx.__file__).parent
FLOORS = [
    {"notation"},
    {"validate", "files", "seeding"},
    {"registry"},
    {"nn"},
    {"config", *ROOMS},
    {"model"},
    {"training"},
    {"monitoring"},
    {"contracts", "analysis"},
    {"experiment"},
    {"inference"},
    {"train", "evaluate", "transcribe", "spectra", "compare", "parts", "check"},
]
FLOOR = {module: height for height, modules in enumerate(FLOORS) for module in modules}
# contracts that a class may declare itself exempt from, by its module; subclasses inherit them
TORCH_STEP = ("meta", "no_host_read", "non_finite")
EXEMPT = {
    "optim._torch": TORCH_STEP,
    "optim._wrapper": TORCH_STEP,
    "optim.muon": TORCH_STEP,
    "spectrum.shuffled": ("sums_to_one", "flat_on_white", "separates_slow_and_fast"),
    "rotary.variable_radii": ("norm_unchanged",),
    "rotary.learned_rotations": ("depends_on_distance_alone",),
    "rotary.axial": ("depends_on_distance_alone",),
}


def imports(path):
    """Modules of famx that a file imports when it is itself imported, or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "famx":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("famx."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("famx.")
            )


def test_imports_point_down():
    for path in ROOT.rglob("*.py"):
        here = path.relative_to(ROOT).with_suffix("").parts[0]
        for other in set(imports(path)) - {here}:
            below = FLOOR[other] < FLOOR.get(here, len(FLOORS))
            verb = FLOOR.get(here) == FLOOR.get(other) == len(FLOORS) - 1
            assert below or verb, f"{path.name} of {here} imports famx.{other}"


def test_everything_has_a_floor():
    modules = set()
    for path in ROOT.iterdir():
        if not path.name.startswith("__") and (path.suffix == ".py" or path.is_dir()):
            modules.add(path.stem)
    assert modules == set(FLOOR)


def test_only_listed_classes_declare_exemptions():
    for parts in PARTS.values():
        for part in parts.values():
            for cls in part.__mro__:
                module = cls.__module__.removeprefix("famx.")
                declared = set(vars(cls).get("exempt", {}))
                assert declared <= set(EXEMPT.get(module, ())), f"{cls.__name__} of {module}"


def test_no_config_can_name_code():
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "conf").rglob("*.yaml")]:
        assert "_target_" not in path.read_text(), path
