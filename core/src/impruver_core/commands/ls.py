"""`impruver ls`: the installed recipes by family, and the tools."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from impruver_core.cli.console import format_table, print_result
from impruver_core.commands.installed_tools import TOOLS, find_tool
from impruver_core.recipe.paths import find_recipes_root, list_recipes
from impruver_core.system import get_installed_version


def main(argv: Sequence[str]) -> int:
    """Prints both lists on stdout."""
    argparse.ArgumentParser("impruver ls", description="List the installed recipes and tools.").parse_args(argv)
    recipes = [(name, read_headline(find_recipes_root() / f"{name}.yaml")) for name in list_recipes()]
    absent = "no recipes are installed; install them with: pip install impruver-configs"
    print_result(format_table(("RECIPE", "MAKES"), recipes) if recipes else absent)
    tools = []
    for package, tool in TOOLS.items():
        version = get_installed_version(package)
        if version is None and find_tool(package) is None:
            tools.append((package, "-", f"not installed: pip install {package}"))
        else:
            tools.append((package, version or "elsewhere on PATH", tool.does))
    print_result("\n" + format_table(("TOOL", "VERSION", "DOES"), tools))
    return 0


def read_headline(path: Path) -> str:
    """What a recipe makes: the first line of the comment it begins with, else nothing."""
    with open(path, encoding="utf-8") as file:
        first = file.readline().strip()
    return first.lstrip("# ") if first.startswith("#") else ""
