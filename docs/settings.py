"""Writes the tables of settings into these pages, from the dataclasses in which the defaults stand.

    python docs/settings.py

A table lies between `<!-- settings: NAME -->` and `<!-- end -->`; NAME is an algorithm, or `run` for the settings that
every run has. `make docs` fails where a table differs from the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal import registry
from shoal.config import Settings

DOCS = Path(__file__).parent
TABLE = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def meanings(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, or of one that it extends."""
    found: dict[str, str] = {}
    for base in reversed([k for k in kind.__mro__ if dataclasses.is_dataclass(k)]):
        found |= _strings(base)
    return found


def _strings(kind: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found, field = {}, ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and field:
            found[field] = " ".join(str(node.value.value).split())
    return found


def rows(settings: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of every field; those of a nested dataclass as `outer.inner`."""
    explained = meanings(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from rows(value, f"{prefix}{field.name}.")
            continue
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        yield prefix + field.name, f"`{shown}`" if shown else "", explained[field.name].replace("|", "\\|")


def table(name: str) -> str:
    """The Markdown table of an algorithm's settings, or of a run's."""
    settings = Settings() if name == "run" else registry.algorithm(name).config
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [f"| `{setting}` | {default} | {meaning} |" for setting, default, meaning in rows(settings)]
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """A page with the tables of the code as it is."""
    return TABLE.sub(lambda match: match[1] + "\n" + table(match[2]) + "\n" + match[3], text)


def outdated() -> list[Path]:
    """Pages whose tables differ from the code."""
    pages = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    return [path for path in pages if path.read_text() != renewed(path.read_text())]


if __name__ == "__main__":
    for path in outdated():
        path.write_text(renewed(path.read_text()))
        print(f"wrote {path}")
