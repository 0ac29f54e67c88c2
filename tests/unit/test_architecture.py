"""Who may import whom, and who may break which law."""

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
    {"training", "monitoring"},
    {"contracts", "analysis"},
    {"experiment"},
    {"inference"},
    {"train", "evaluate", "transcribe", "spectra", "compare", "parts", "check"},
]
FLOOR = {module: height for height, modules in enumerate(FLOORS) for module in modules}
# torch's own, or by default around torch's own
TORCHS = ("adafactor", "adamw", "agc", "ema_nesterov", "lookahead", "muon", "nadamw", "sgd")
EXEMPT = {
    *(("optim", name, law) for name in TORCHS for law in ("meta", "no_host_read", "non_finite")),
    *(
        ("spectrum", "shuffled", law)
        for law in ("sums_to_one", "flat_on_white", "separates_slow_and_fast")
    ),
    ("rotary", "variable_radii", "norm_kept"),
    *(("rotary", name, "distance_law") for name in ("learned_rotations", "axial")),
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
    found = {
        p.stem
        for p in ROOT.iterdir()
        if not p.name.startswith("__") and (p.suffix == ".py" or p.is_dir())
    }
    assert found == set(FLOOR)


def test_only_listed_parts_are_exempt_and_only_from_listed_laws():
    found = {
        (room, name, law)
        for room, parts in PARTS.items()
        for name, part in parts.items()
        for law in getattr(part, "exempt", {})
    }
    assert found <= EXEMPT


def test_no_config_can_name_code():
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "conf").rglob("*.yaml")]:
        assert "_target_" not in path.read_text(), path
