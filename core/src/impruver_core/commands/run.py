"""`impruver run [LAUNCHER OPTIONS] NAME [FLAGS]`: becomes the tool's program.

What stands before NAME goes to `python -m torch.distributed.run`, as it is; only finetune takes that.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from impruver_core.cli.console import print_result
from impruver_core.commands.installed_tools import NAMES, TOOLS, require_program
from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

TRAIN = "impruver-train"
# With one of these the user arranges the meeting of the processes; without, two jobs would meet on one port.
MEETING = ("--standalone", "--rdzv", "--master", "--nnodes", "--node-rank")
SWITCHES = ("--standalone", "--no-python", "--run-path", "--module", "-m", "--virtual-local-rank")  # take no value
MEETING_VARIABLES = ("PET_STANDALONE", "PET_RDZV", "PET_MASTER", "PET_NNODES", "PET_NODE_RANK")
# Seconds that torchrun leaves its processes after a signal before it kills them: its 30 are too few for a checkpoint.
SHUTDOWN_VARIABLE, SHUTDOWN_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300"
HELP = """\
usage: impruver run NAME --config RECIPE [FLAGS]
       impruver run [LAUNCHER OPTIONS] finetune --config RECIPE [FLAGS]

{tools}

LAUNCHER OPTIONS are torchrun's, as in: impruver run --nproc_per_node 4 finetune --config RECIPE
NAME --help lists the tool's flags."""


def main(argv: Sequence[str]) -> int:
    """Replaces this process, so signals and the exit code are the tool's own."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {tool.name:<16} {package:<17} {tool.does}" for package, tool in TOOLS.items()]
        print_result(HELP.format(tools="\n".join(lines)))
        return 0 if argv else 2
    position = _find_name(list(argv))
    launcher, name, flags = argv[:position], argv[position], argv[position + 1 :]
    behind = [flag for flag in flags if flag.replace("_", "-").startswith(("--nproc", *MEETING))]
    if behind:
        raise ImpruverError(f"{behind[0]} is an option of the launcher: put it before the name, ahead of {name}")
    package = NAMES[name]
    program = require_program(package)
    if not launcher:
        return _replace_process([program, *flags])
    if package != TRAIN:
        raise ImpruverError(f"{' '.join(launcher)}: only finetune takes options of the launcher (torchrun)")
    if find_spec("torch") is None or find_spec("impruver_train") is None:
        raise ImpruverError(f"a launch needs torch and impruver_train in this Python: pip install {TRAIN}")
    os.environ.setdefault(SHUTDOWN_VARIABLE, SHUTDOWN_SECONDS)
    return _replace_process(build_launch_command(launcher, flags))


def build_launch_command(launcher: Sequence[str], flags: Sequence[str]) -> list[str]:
    """torchrun's command line for impruver_train; on one machine with a free port of its own."""
    own = any(option.replace("_", "-").startswith(MEETING) for option in launcher)
    own = own or any(name.startswith(MEETING_VARIABLES) for name in os.environ)
    alone = [] if own else ["--standalone"]
    return [sys.executable, "-m", "torch.distributed.run", *alone, *launcher, "-m", "impruver_train", *flags]


def _find_name(argv: list[str]) -> int:
    """The position of the tool's name; without a dash in front the first word must be the name."""
    positions = [position for position, word in enumerate(argv) if word in NAMES]
    if positions and (positions[0] == 0 or argv[0].startswith("-")):
        return next((position for position in positions if not _is_value(argv, position)), positions[0])
    unknown = next((word for word in argv if not word.startswith("-")), argv[0])
    raise ImpruverError(f"no tool {unknown}{suggest(unknown, NAMES)}")


def _is_value(argv: list[str], position: int) -> bool:
    """Whether a word belongs to the launcher's option before it, as in `--log_dir chat`."""
    before = argv[position - 1] if position else ""
    return before.startswith("-") and "=" not in before and before.replace("_", "-") not in SWITCHES


def _replace_process(command: list[str]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)
    return 1  # execv does not return
