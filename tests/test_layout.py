"""The plan of the house: who may import whom (README, "The files")."""

import ast
from graphlib import TopologicalSorter

from conftest import ROOT

PATHS = [*ROOT.glob("0*_*.py")]
for folder in ("common", "steps", "baselines", "annotate"):
    PATHS += (ROOT / folder).rglob("*.py")
FILES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
         for path in PATHS if path.name != "__init__.py"}


def imports_of(path):
    """The files of the project that a file imports, at any place in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names.add(ast.unparse(node.args[0]).strip("'"))
    return names & set(FILES)


def room_of(name):
    """steps.train.packing, 04_train -> train; common.data -> common; baselines.x -> baselines.
    """
    first, *rest = name.split(".")
    return rest[0] if first == "steps" else first.lstrip("0123456789_")


def test_who_imports_whom():
    """A script and a room use themselves and common; what stands beside the chain uses any room."""
    for name, path in FILES.items():
        for used in imports_of(path):
            beside = name.startswith(("baselines", "annotate")) and used.startswith("steps")
            assert beside or room_of(used) in (room_of(name), "common"), f"{name} imports {used}"
            assert not used.startswith("0"), f"{name} imports the script {used}"


def test_no_circle():
    plan = {name: imports_of(path) for name, path in FILES.items()}
    assert set(TopologicalSorter(plan).static_order()) == set(FILES) and len(FILES) > 50
