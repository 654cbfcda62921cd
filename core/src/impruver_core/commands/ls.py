"""`impruver ls`: the installed recipes by family, and the tools."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from impruver_core.cli.console import result, table
from impruver_core.cli.versions import installed_version
from impruver_core.commands.installed_tools import TOOLS, find_program, install_command
from impruver_core.recipe.catalog import recipe_names, recipes_root


def main(argv: Sequence[str]) -> int:
    """Prints both lists on stdout."""
    argparse.ArgumentParser("impruver ls", description="List the installed recipes and tools.").parse_args(argv)
    result(_recipes())
    result("")
    result(_tools())
    return 0


def _recipes() -> str:
    rows = [(name, headline(recipes_root() / f"{name}.yaml")) for name in recipe_names()]
    if not rows:
        return "no recipes are installed; install them with: pip install impruver-configs"
    return table(("RECIPE", "MAKES"), rows)


def headline(path: Path) -> str:
    """What a recipe makes: the first line of the comment it begins with, else nothing."""
    with open(path, encoding="utf-8") as file:
        first = file.readline().strip()
    return first.lstrip("# ") if first.startswith("#") else ""


def _tools() -> str:
    rows = []
    for package, tool in TOOLS.items():
        version = installed_version(package)
        if version is None and find_program(package) is None:
            rows.append((package, "-", f"not installed: {install_command(package)}"))
        else:
            rows.append((package, version or "elsewhere on PATH", tool.does))
    return table(("TOOL", "VERSION", "DOES"), rows)
