"""`impruver check --config RECIPE`: every installed tool's --dry_run, one after the other."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from impruver_core.cli.console import print_result
from impruver_core.commands.installed_tools import TOOLS, find_tool
from impruver_core.recipe.loading import load_recipe


def main(argv: Sequence[str]) -> int:
    """The worst exit code of the tools; an absent one is named and costs nothing."""
    parser = argparse.ArgumentParser("impruver check", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a file, or a name that `impruver ls` lists")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    arguments = parser.parse_args(argv)
    load_recipe(arguments.config, arguments.set)  # its faults are reported once, not by each tool
    flags = ["--config", arguments.config, *(f"--set={override}" for override in arguments.set), "--dry_run"]
    codes = {package: _run_check(package, flags) for package in TOOLS}
    print_result("")
    for package, code in codes.items():
        result = "passed" if code == 0 else f"failed (exit {code})"
        absent = f"not installed, so not checked (pip install {package})"
        print_result(f"{package}: {absent if code is None else result}")
    return max(code or 0 for code in codes.values())


def _run_check(package: str, flags: list[str]) -> int | None:
    """The exit code of the tool's --dry_run as a shell tells it; None where the tool is absent."""
    program = find_tool(package)
    if program is None:
        return None
    print_result(f"== {package}")
    sys.stdout.flush()
    code = subprocess.run([program, *flags], stdin=subprocess.DEVNULL, check=False).returncode
    return 128 - code if code < 0 else code
