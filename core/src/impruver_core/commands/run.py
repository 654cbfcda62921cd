"""`impruver run [LAUNCHER OPTIONS] NAME [FLAGS]`: becomes the tool's program, or torchrun's launcher.

What stands before NAME goes to torchrun (`torch.distributed.run`), as it is; only finetune takes that. It runs in this
process, so that a process of the run that was killed is one message.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from impruver_core.cli import stop_signals
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
# They tell of each process that ends, before what is said here.
CHATTY = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")
# In the processes of a run: that this launcher reports which of them was killed; and how one ends that lost another.
REPORTING, PEER_LOST = "IMPRUVER_LAUNCHER_REPORTS", 75
HELP = """\
usage: impruver run NAME --config RECIPE [FLAGS]
       impruver run [LAUNCHER OPTIONS] finetune --config RECIPE [FLAGS]

{tools}

LAUNCHER OPTIONS are torchrun's, as in: impruver run --nproc_per_node 4 finetune --config RECIPE
NAME --help lists the tool's flags."""


def main(argv: Sequence[str]) -> int:
    """Replaces this process, so signals and the exit code are the tool's own; with a launcher stays until its end."""
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
    return launch(build_launch_command(launcher, flags)[3:])


def launch(arguments: Sequence[str]) -> int:
    """Runs torchrun with these arguments; ImpruverError for a process that was killed, its exit code else.

    A process that failed by itself has said why: nothing is added to that.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ[REPORTING] = "1"
    for name in CHATTY:
        logging.getLogger(name).addFilter(lambda _: False)
    try:
        run(parse_args(list(arguments)))
    except SignalException as stop:
        if stop.sigval in stop_signals.NAMES:
            raise stop_signals.make_exception(stop.sigval) from None
        return 128 + stop.sigval
    except ChildFailedError as error:
        check_failures(error.failures)
        return 1
    return 0


def check_failures(failures: Mapping[int, Any]) -> None:
    """ImpruverError that says which process of a run was killed, or that they lost each other.

    `failures`: torchrun's of each rank. One that lost another, or that the launcher then ended, did not begin it.
    """
    rank, first = min(
        failures.items(), key=lambda item: (item[1].exitcode in (PEER_LOST, -signal.SIGTERM), item[1].timestamp)
    )
    again = "give the same command again: it resumes from the last whole checkpoint, or begins again"
    if first.exitcode == PEER_LOST:
        raise ImpruverError(
            "the processes of this run lost each other, and none of them was killed here: look at the other machines "
            f"and the network between them, and {again}"
        )
    if first.exitcode < 0:
        raise ImpruverError(
            f"rank {rank} of this run (process {first.pid}) was killed by {first.signal_name()}, and the others were "
            "ended. Where nobody did that, memory was not enough: set a smaller trainer.per_device_train_batch_size; "
            f"{again}"
        )


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
