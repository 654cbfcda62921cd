"""`impruver cp RECIPE WHERE`: a copy of a recipe to change."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from impruver_core.cli.console import log_info, print_result
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import make_folder
from impruver_core.recipe.paths import find_recipe


def main(argv: Sequence[str]) -> int:
    """Prints the path of the copy on stdout; never writes over a file."""
    parser = argparse.ArgumentParser("impruver cp", description="Copy an installed recipe to change it.")
    parser.add_argument("recipe", help="a name that `impruver ls` lists, or a file")
    parser.add_argument("where", help="a folder, or the new file")
    arguments = parser.parse_args(argv)
    target = copy_recipe(arguments.recipe, arguments.where)
    print_result(str(target))
    log_info(f"next: change it, then impruver-compose --config {shlex.quote(str(target))}")
    return 0


def copy_recipe(name: str, where: str) -> Path:
    """The copy's path: `where`, or a file of the recipe's name in it if it is a folder or ends in a slash."""
    source = find_recipe(name)
    target = Path(where).expanduser()
    if where.endswith("/") or target.is_dir():
        target /= source.name
    content = source.read_bytes()
    make_folder(target.parent)
    try:
        file = open(target, "xb")  # noqa: SIM115
    except FileExistsError:
        raise ImpruverError(f"{target} is already there and stays as it is; give the copy another name") from None
    try:
        with file:
            file.write(content)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target
