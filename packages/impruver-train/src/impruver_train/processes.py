"""Several processes of one run: one speaks and writes, all stop and leave together."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from impruver_core.cli.console import set_mute
from impruver_core.cli.tool import STOPPED_BY_KEYBOARD, STOPPED_BY_SIGNAL, Terminated

WAITS = 10.0  # seconds in which a launcher ends the others once the first has told what happened


def first_on_machine() -> bool:
    """Whether this process is the first of its run here, or the only one."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


@contextmanager
def one_voice() -> Iterator[None]:
    """Has only the first process on each machine speak.

    What ends the others ends it too, as a rule: they leave the telling to it, and tell it themselves when nobody ended
    them for that.
    """
    if "LOCAL_RANK" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch is not imported yet; its warnings are no user's
    if first_on_machine():
        yield
        return
    set_mute(True)
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        raise SystemExit(STOPPED_BY_SIGNAL if isinstance(stop, Terminated) else STOPPED_BY_KEYBOARD) from None
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(WAITS)
        raise
    finally:
        set_mute(False)


def leave(code: int) -> int:
    """The exit code; a process that a launcher started ends here.

    Threads of torch's process groups can abort a process that winds down (SIGABRT), and the launcher would take a run
    whose work is done for a failed one.
    """
    if "LOCAL_RANK" in os.environ and "torch" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def together() -> bool:
    """Whether several processes have met."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def wait_for_all() -> None:
    """Until all processes have come here; nothing for one alone."""
    from torch import distributed

    if together():
        distributed.barrier()


def part() -> None:
    """Ends the meeting of several processes, all together: one that just left would take the writer along."""
    from torch import distributed

    if together():
        distributed.barrier()
        distributed.destroy_process_group()
