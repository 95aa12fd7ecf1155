"""Imports point only downwards (docs/design.md, "Layers")."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "shoal"
LAYERS = [
    {"types", "tree", "jit"},
    {
        "returns",
        "explore",
        "actions",
        "optim",
        "replay",
        "rollouts",
        "elementary",
        "surrogate",
        "qvalues",
        "pointers",
        "roll",
        "threads",
        "nets",
        "envs",
    },
    {"algorithms", "collect"},
    {
        "train",
        "evaluate",
        "checkpoint",
        "locks",
        "log",
        "plot",
        "film",
        "registry",
        "config",
        "presets",
        "experiment",
        "export",
        "teams",
        "stats",
        "jobs",
        "sweep",
    },
    {"cli", "commands", "__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def unit(path: Path) -> str:
    """The file or folder directly below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Units of the package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "shoal":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("shoal.")}
    return found & LEVEL.keys()


def test_every_unit_has_a_layer() -> None:
    assert {unit(path) for path in PACKAGE.rglob("*.py")} <= LEVEL.keys()


def test_imports_point_down() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = unit(path)
        for there in imported(ast.parse(path.read_text())):
            up = LEVEL[there] > LEVEL[here]
            across = {here, there} in ({"algorithms", "envs"}, {"collect", "algorithms"}, {"replay", "envs"})
            if up or across:
                wrong.append(f"{path.name} ({LEVEL[here]}) imports {there} ({LEVEL[there]})")
    assert not wrong


def test_algorithms_and_environments_do_not_know_each_other() -> None:
    for folder, other in (("algorithms", "envs"), ("envs", "algorithms")):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert other not in imported(ast.parse(path.read_text())), path
