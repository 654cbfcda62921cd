"""`impruver run|ls|cp|check|env|demo`: what surrounds the tools. One verb a file, each a `main(argv) -> int`."""

import importlib
import sys
from collections.abc import Sequence

from impruver_core.cli.console import print_result
from impruver_core.cli.runner import run_guarded
from impruver_core.commands.installed_tools import NAMES, TOOLS
from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

VERBS = {
    "run": "start a tool: compose_dataset, finetune, convert_gguf or chat",
    "ls": "list the installed recipes and tools",
    "cp": "copy an installed recipe to change it",
    "check": "run every installed tool's --dry_run on a recipe",
    "env": "print the versions that a bug report needs",
    "demo": "run the whole chain on a tiny model, offline, into one folder",
}
HELP = """\
usage: impruver COMMAND …     impruver COMMAND --help tells more

commands:
{verbs}

tools, each a program of its own (`impruver ls` tells which are installed):
{tools}"""


def main(argv: Sequence[str] | None = None) -> int:
    """The program `impruver`; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_guarded("impruver", lambda: _run_command(words), own_process=argv is None)


def _run_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, [*VERBS, *TOOLS]))
        verbs = [f"  {name:<{width}}  {does}" for name, does in VERBS.items()]
        tools = [f"  {name:<{width}}  {tool.does}" for name, tool in TOOLS.items()]
        print_result(HELP.format(verbs="\n".join(verbs), tools="\n".join(tools)))
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from impruver_core.cli.flags import format_version_line

        print_result(format_version_line("impruver"))
        return 0
    if words[0] not in VERBS:
        hint = f"; did you mean run {words[0]}?" if words[0] in NAMES else suggest(words[0], VERBS)
        raise ImpruverError(f"no command {words[0]}{hint}")
    return importlib.import_module(f"impruver_core.commands.{words[0]}").main(words[1:])
