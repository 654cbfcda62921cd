"""The one place that turns errors and signals into exit codes."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import make_visible, open_streams, set_quiet, silence_stream
from impruver_core.errors import ImpruverError, RecipeError

if TYPE_CHECKING:
    from impruver_core.recipe.loading import Recipe

STOPPED_BY_KEYBOARD, STOPPED_BY_SIGNAL = 130, 143
NETWORK_LIBRARIES = ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")


class TerminationSignal(BaseException):
    """SIGTERM came. Like KeyboardInterrupt no Exception: what is open is unwound, nobody swallows it by chance.

    What either is raised with, such as what was saved, is printed.
    """


def run_tool(
    program: str,
    flags_type: type,
    main: Callable[[Recipe, Any], int | None],
    argv: Sequence[str] | None = None,
    *,
    config_from_output_dir: bool = False,
) -> int:
    """Parses `argv`, loads the recipe with its overrides, calls `main(recipe, flags)`; returns the exit code.

    `main` returns None (0), or a code of its own. SystemExit, as from --help, passes through. With
    `config_from_output_dir` (of FolderFlags) the recipe.yaml that training left in --output_dir stands in for --config.
    """

    def work() -> int | None:
        from impruver_core.cli.flags import Parser, list_recipe_flags
        from impruver_core.dynamic_import import set_foreign_recipe
        from impruver_core.recipe.loading import load_recipe

        parser = Parser(flags_type, program, inspect.getdoc(flags_type))
        flags = parser.parse(sys.argv[1:] if argv is None else argv)
        set_quiet(flags.quiet)
        config = flags.config or (_find_trained_recipe(flags.output_dir) if config_from_output_dir else None)
        if not config:
            raise ImpruverError("--config is missing: give a recipe's file, or a name that `impruver ls` lists")
        set_foreign_recipe(None if flags.config or flags.trust_remote_code else Path(config))
        try:
            return main(load_recipe(config, parser.overrides, named=list_recipe_flags(flags)), flags)
        finally:
            set_foreign_recipe(None)

    return run_guarded(program, work)


def run_guarded(program: str, work: Callable[[], int | None]) -> int:
    """Calls `work()` and turns its end into an exit code: one message on stderr, a traceback for our own faults."""
    open_streams()
    try:
        with _terminable_by_signal(), _safe_child_imports():
            code = work() or 0
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                silence_stream(sys.stdout)
            return code
    except KeyboardInterrupt as stop:
        return _exit(program, ": ".join(["stopped by Ctrl+C", *map(str, stop.args)]), STOPPED_BY_KEYBOARD)
    except TerminationSignal as stop:
        return _exit(program, ": ".join(["stopped by SIGTERM", *map(str, stop.args)]), STOPPED_BY_SIGNAL)
    except ImpruverError as error:
        faults = error.faults if isinstance(error, RecipeError) else []
        lines = [f"error: {len(faults)} faults in the recipe", *faults] if len(faults) > 1 else [f"error: {error}"]
        return _exit(program, "\n  ".join(lines), error.exit_code)
    except Exception as error:
        message = _translate_error(error)
        if message is not None:
            return _exit(program, f"error: {message}", 2)
        traceback.print_exc()
        return _exit(program, "this is a fault of ours; please report it with what `impruver env` prints", 1)


def _find_trained_recipe(output_dir: str | None) -> str | None:
    """The recipe that training left in its output_dir, to go without --config."""
    if output_dir is None:
        return None
    path = Path(output_dir).expanduser() / "recipe.yaml"
    if not path.is_file():
        raise ImpruverError(f"--config is missing, and --output_dir {output_dir} holds no recipe.yaml: give a recipe")
    return str(path)


def _translate_error(error: Exception) -> str | None:
    """The message for what the user or the machine must put right; None for a fault of ours."""
    words = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):  # torch's on a CPU
        return "out of memory"
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return f"out of GPU memory: {words.splitlines()[0]}"
    if isinstance(error, OSError) and error.errno is not None:
        hint = "; make room and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{f'{files}: ' if files else ''}{error.strerror}{hint}"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.expanduser's
        return "a path begins with ~ and a name that has no home folder here; write the path in full"
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if isinstance(error, OSError) or libraries.intersection(NETWORK_LIBRARIES):
        return words
    return None


@contextmanager
def _safe_child_imports() -> Iterator[None]:
    """Has Python's child processes import nothing that happens to lie in the working folder."""
    if "PYTHONSAFEPATH" in os.environ:
        yield
        return
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ.pop("PYTHONSAFEPATH", None)


@contextmanager
def _terminable_by_signal() -> Iterator[None]:
    """Has SIGTERM raise TerminationSignal in the main thread; a second one, or one in a forked worker, ends it."""
    ours = os.getpid()

    def stop(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != ours:
            os.kill(os.getpid(), signal.SIGTERM)
        raise TerminationSignal

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _exit(program: str, message: str, code: int) -> int:
    """Prints the last message and returns the code."""
    try:
        sys.stdout.flush()
        sys.stderr.write(make_visible(f"{program}: {message}\n"))
        sys.stderr.flush()
    except OSError:  # nobody reads any more, or the log's disk is full; the exit code says it
        silence_stream(sys.stdout)
        silence_stream(sys.stderr)
    return code
