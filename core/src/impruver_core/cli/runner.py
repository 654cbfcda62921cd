"""The one place that turns errors and signals into exit codes."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli import stop_signals
from impruver_core.cli.console import make_visible, set_quiet
from impruver_core.cli.stop_signals import TerminationSignal
from impruver_core.cli.streams import drain_streams, open_streams, take_lost_results, write_stream
from impruver_core.errors import ImpruverError, RecipeError
from impruver_core.system import join_absolute_folders

if TYPE_CHECKING:
    from impruver_core.recipe.loading import Recipe

# What C and C++ libraries, the dynamic loader among them, say where memory is short or a limit is set on it.
OUT_OF_MEMORY = (
    "allocate memory",
    "failed to map segment",
    "bad_alloc",
    "cannot create shared object",
    "malloc failed",
)
NETWORK_LIBRARIES = ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")


def run_tool(
    program: str,
    flags_type: type,
    main: Callable[[Recipe, Any], int | None],
    argv: Sequence[str] | None = None,
    *,
    config_from_output_dir: bool = False,
    works_without_recipe: Callable[[Any], bool] = lambda flags: False,
) -> int:
    """Parses `argv`, loads the recipe with its overrides, calls `main(recipe, flags)`; returns the exit code.

    `main` returns None (0), or a code of its own. SystemExit, as from --help, passes through. With
    `config_from_output_dir` (of FolderFlags) the recipe.yaml that training left in --output_dir stands in for --config;
    where there is none either, the defaults do for flags of which `works_without_recipe` is true.
    """

    def work() -> int | None:
        from impruver_core.cli.flags import Parser, list_recipe_flags
        from impruver_core.dynamic_import import set_foreign_recipe
        from impruver_core.recipe.loading import load_recipe
        from impruver_core.system import check_limits

        parser = Parser(flags_type, program, inspect.getdoc(flags_type))
        flags = parser.parse(sys.argv[1:] if argv is None else argv)
        set_quiet(flags.quiet)
        alone = works_without_recipe(flags)
        config = flags.config or (_find_trained_recipe(flags.output_dir, alone) if config_from_output_dir else None)
        if not config and not alone:
            raise ImpruverError("--config is missing: give a recipe's file, or a name that `impruver ls` lists")
        check_limits()
        # A model's folder without a recipe may run no more code than one with a recipe of its own.
        foreign = config or flags.output_dir
        set_foreign_recipe(Path(foreign) if foreign and not (flags.config or flags.trust_remote_code) else None)
        try:
            return main(load_recipe(config, parser.overrides, named=list_recipe_flags(flags)), flags)
        finally:
            set_foreign_recipe(None)

    return run_guarded(program, work, own_process=argv is None)


def run_guarded(program: str, work: Callable[[], int | None], own_process: bool = False) -> int:
    """Calls `work()` and turns its end into an exit code: one message on stderr, a traceback for our own faults.

    Args:
        own_process: the process ends with this, so that a signal that comes later changes nothing any more.
    """
    open_streams()
    with stop_signals.handled(program, own_process) as signals:
        try:
            try:
                with _safe_children():
                    code = work() or 0
                    write_stream(sys.stdout, "")  # whatever was printed otherwise
            finally:
                signals.ignore()
            lost = take_lost_results()
            if signals.came is not None:  # a library caught what it raised
                raise stop_signals.make_exception(signals.came)
            if lost is not None and code == 0:
                raise ImpruverError(f"standard output: {lost.strerror}: not all results could be printed")
            return code
        except (KeyboardInterrupt, TerminationSignal) as stop:
            name, code = stop_signals.describe(stop)
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the launcher, or the first rank, says it for all
                return code
            return _exit(program, ": ".join([f"stopped by {name}", *map(str, stop.args)]), code)
        except ImpruverError as error:
            faults = error.faults if isinstance(error, RecipeError) else []
            lines = [f"error: {len(faults)} faults in the recipe", *faults] if len(faults) > 1 else [f"error: {error}"]
            return _exit(program, "\n  ".join(lines), error.exit_code)
        except Exception as error:
            # It made something fail that was being imported or called back, or a library raised its own error for it.
            if signals.came_lately or stop_signals.is_caused_by_stop(error):
                return _exit(program, f"stopped by {stop_signals.NAMES[signals.last]}", 128 + signals.last)
            message = _translate_error(error)
            if message is not None:
                return _exit(program, f"error: {message}", 2)
            write_stream(sys.stderr, make_visible(traceback.format_exc()))
            return _exit(program, "this is a fault of ours; please report it with what `impruver env` prints", 1)
        finally:
            drain_streams()


def _find_trained_recipe(output_dir: str | None, missing_ok: bool) -> str | None:
    """The recipe that training left in its output_dir, to go without --config; None where it may be missing."""
    if output_dir is None:
        return None
    path = Path(output_dir).expanduser() / "recipe.yaml"
    if not path.is_file():
        if missing_ok:
            return None
        raise ImpruverError(f"--config is missing, and --output_dir {output_dir} holds no recipe.yaml: give a recipe")
    return str(path)


def _translate_error(error: Exception) -> str | None:
    """The message for what the user or the machine must put right; None for a fault of ours."""
    words = str(error).strip() or type(error).__name__
    limit = _find_limit(error)
    if limit is not None:
        return limit
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


def _find_limit(error: BaseException) -> str | None:
    """The limit of this machine, or of `ulimit`, that an error or what it came from is about."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for each in chain:
        number, text = getattr(each, "errno", None), str(each)
        if number in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in text:
            return "too many open files for this system: raise the limit, as with ulimit -n 4096"
        if isinstance(each, MemoryError) or number == errno.ENOMEM or any(sign in text for sign in OUT_OF_MEMORY):
            return "out of memory"
        if "can't start new thread" in text or number == errno.EAGAIN:
            return "no more threads or processes can be started: raise the limit (ulimit -u), or that on memory"
    return None


@contextmanager
def _safe_children() -> Iterator[None]:
    """Has child processes take nothing that happens to lie in the working folder: no module, and no program.

    Libraries start programs, too: a compiler, `uname`.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PATH")}
    os.environ["PYTHONSAFEPATH"] = before["PYTHONSAFEPATH"] or "1"
    os.environ["PATH"] = join_absolute_folders(before["PATH"])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _exit(program: str, message: str, code: int) -> int:
    """Prints the last message and returns the code."""
    write_stream(sys.stdout, "")
    write_stream(sys.stderr, make_visible(f"{program}: {message}\n"))
    return code
