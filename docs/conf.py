"""Sphinx: `make docs` builds these pages into docs/_build."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from settings import outdated  # the file beside this one
from sphinx.errors import ExtensionError

project = "shoal"
author = "the shoal maintainers"
version = release = installed_version("shoal")

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"shoal {release}"
html_show_sourcelink = False


def check_settings(app: Any) -> None:
    """Refuse pages whose tables of settings are not those of the code."""
    if stale := outdated():
        names = ", ".join(str(path.relative_to(Path(__file__).parent)) for path in stale)
        raise ExtensionError(f"tables of settings are out of date in {names}: run `python docs/settings.py`")


def setup(app: Any) -> None:
    app.connect("builder-inited", check_settings)
