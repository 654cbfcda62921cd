"""The fork server: imports what is expensive once, and forks a child for each example.

A child has a session, a working folder, a cache and a log of its own; its home folder is a canary. What it did is
measured here and judged elsewhere.
"""

import contextlib
import ctypes
import faulthandler
import gc
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from fuzzing import example, rendering, samples

ENVIRONMENT = {
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
HEAVY = ("torch", "transformers", "datasets", "peft", "pandas", "gguf", "datasketch", "jinja2")
HARMLESS_THREADS = {"jemalloc_bg_thd"}  # of pyarrow, which sees to forks itself
MOST_MEMORY = 2 << 30  # bytes beyond the server's own
MOST_ADDRESSES = 12 << 30  # bytes: stops what grows faster than it is looked at
MOST_DISK = 1 << 30  # bytes
MOST_OUTPUT = 1 << 20  # bytes of each stream that are looked at
CANARIES = {".bashrc": "# mine\n", ".ssh/id_ed25519": "secret\n", "profile": "mine", "letters/one.txt": "Dear…\n"}
PR_SET_PDEATHSIG = 1  # Linux's


class Outcome(NamedTuple):
    """What became of a command.

    `ended`: `exit` with `code`, `signal` number `code`, or stopped for its `time`, `memory` or `disk`. `cpu` is in
    seconds, too, with the processes that it waited for; `memory` in bytes, beyond the server's. `stack`: where it was
    when it crashed or was stopped. `changed`: files elsewhere that it changed.
    """

    ended: str
    code: int
    seconds: float
    cpu: float
    memory: int
    out: str
    err: str
    stack: str
    changed: list[str]


def serve(connections: Sequence[Connection], root: Path) -> None:
    """Builds the samples, imports, then runs the commands that come through each connection until it closes."""
    messages = os.fdopen(os.dup(2), "w")
    redirect_streams(root)
    resource_tracker.register = resource_tracker.unregister = lambda *_: None  # it would miss what children leave
    try:
        preload(root)
    except Exception:
        messages.write(traceback.format_exc())
        return
    number = next((number for number in range(1, len(connections)) if os.fork() == 0), 0)
    answer_requests(connections[number], root, number)
    os._exit(0)  # at a usual end libraries would complain of what was not closed


def preload(root: Path) -> None:
    """Imports all that the commands import at work, by the names alone: no thread is started by it."""
    for name in HEAVY:
        importlib.import_module(name)
    slot = root / "warm"
    make_home(slot / "home")
    import_what(lambda: samples.build_samples(root), slot)
    for valid in samples.list_valid_examples():
        example.place(valid, slot / "work", root / "samples", slot / "home")
        import_what(lambda command=valid.command: start(command, slot), slot)
    names = [Path(f"/proc/self/task/{each}/comm").read_text().strip() for each in os.listdir("/proc/self/task")]
    others = [name for name in names if name not in HARMLESS_THREADS]
    if len(others) > 1:
        raise RuntimeError(f"threads that a fork would lose: {', '.join(others)}")
    gc.freeze()  # a collection in a child would copy every page that it looks at


def import_what(work: Callable[[], object], slot: Path) -> None:
    """Has a forked child work, then imports here what it imported."""
    path = slot / "modules.json"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            redirect_streams(slot)
            code = work() or 0
            path.write_text(json.dumps(list(sys.modules)), encoding="utf-8")
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    if os.waitpid(pid, 0)[1]:
        log = "\n".join(path.read_text() for path in slot.glob("*.log"))
        raise RuntimeError(f"what should work does not: {log}")
    for name in json.loads(path.read_text(encoding="utf-8")):
        if name not in sys.modules and not name.startswith(("transformers_modules", "__")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def answer_requests(connection: Connection, root: Path, number: int) -> None:
    """Runs a command, (words, seconds), in the slot of this number, or measures this machine's speed for None."""
    slot = root / "slots" / str(number)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        make_home(slot / "home")
        while True:
            request = connection.recv()
            connection.send(measure_speed() if request is None else run(*request, slot, root))


def measure_speed() -> float:
    """The seconds that some work for a processor takes."""
    begin, numbers = time.perf_counter(), list(range(20_000))
    for _ in range(40):
        hashlib.sha256(json.dumps(json.loads(json.dumps(numbers))).encode()).hexdigest()
    return time.perf_counter() - begin


def make_home(home: Path) -> None:
    """Makes a home folder with files that nobody has any business with."""
    shutil.rmtree(home, ignore_errors=True)
    for name, content in CANARIES.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def list_entries(*folders: Path) -> dict[str, tuple]:
    """What tells whether an entry below these folders was changed, by its path."""
    entries = {}
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            stat = path.lstat()
            entries[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return entries


def run(command: Sequence[str], seconds: float, slot: Path, root: Path) -> Outcome:
    """Runs a command in `slot/work`, for so many seconds at most."""
    outside = (slot / "home", root / "samples")
    before, base = list_entries(*outside), read_memory(os.getpid())
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            limit_child()
            code = start(command, slot)
        finally:
            os._exit(code)
    ended, memory = watch(pid, begin + seconds, base)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # its own children, too; it is not reaped yet, so the number is still its own
    _, status, usage = os.wait4(pid, 0)
    spent, memory = time.monotonic() - begin, max(memory, usage.ru_maxrss * 1024 - base)
    code = os.waitstatus_to_exitcode(status)
    if ended == "exit" and code < 0:
        ended, code = "signal", -code
    if ended == "exit" and measure_disk(slot / "work") > MOST_DISK:
        ended = "disk"
    if ended == "exit" and memory > MOST_MEMORY:
        ended = "memory"
    after = list_entries(*outside)
    changed = sorted(path for path in before | after if before.get(path) != after.get(path))
    if changed:
        make_home(slot / "home")
    logs = (read_text(slot / f"{name}.log") for name in ("out", "err", "stack"))
    return Outcome(ended, code, spent, usage.ru_utime + usage.ru_stime, memory, *logs, changed)


def watch(pid: int, deadline: float, base: int) -> tuple[str, int]:
    """Waits until a child ends or must be stopped, which is told with the most memory that was seen."""
    memory, pause = 0, 0.001
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        memory = max(memory, read_memory(pid) - base)
        ended = "memory" if memory > MOST_MEMORY else "time" if time.monotonic() > deadline else None
        if ended:
            os.kill(pid, signal.SIGUSR1)  # prints its stack
            time.sleep(0.2)
            return ended, memory
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return "exit", memory


def limit_child() -> None:
    """Makes the child end with its server, and limits it and what it starts."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MOST_ADDRESSES
    for kind, most in ((resource.RLIMIT_AS, addresses), (resource.RLIMIT_FSIZE, MOST_DISK), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))


def start(command: Sequence[str], slot: Path) -> int:
    """Becomes a command in `slot/work`, its streams in files of `slot`; returns its exit code."""
    os.environ |= {"HOME": str(slot / "home"), "IMPRUVER_CACHE": str(slot / "work/.cache"), "TMPDIR": str(slot / "tmp")}
    shutil.rmtree(slot / "tmp", ignore_errors=True)
    (slot / "tmp").mkdir()
    tempfile.tempdir = None
    os.chdir(slot / "work")
    redirect_streams(slot)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    stack = open(slot / "stack.log", "w")  # noqa: SIM115
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    return call_main(command)


def redirect_streams(slot: Path) -> None:
    """Has this process read nothing, and write into `out.log` and `err.log`."""
    for number, (name, mode) in enumerate(((os.devnull, "r"), (slot / "out.log", "w"), (slot / "err.log", "w"))):
        with open(name, mode) as file:
            os.dup2(file.fileno(), number)


def call_main(command: Sequence[str]) -> int:
    """Calls a command's own main; returns its exit code as a shell would tell it."""
    sys.argv = list(command)
    if command[0] == "impruver":
        check = importlib.import_module("impruver_core.commands.check")
        check.subprocess = SimpleNamespace(run=run_forked, DEVNULL=None)  # in place of processes that import anew
    try:
        program, *arguments = command
        scripts = entry_points(group="console_scripts")
        module = rendering if program == "render" else importlib.import_module(scripts[program].module)
        code = module.main(arguments)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return (code or 0) & 255


def run_forked(command: Sequence[str], **_: object) -> SimpleNamespace:
    """Stands in for subprocess.run where a tool starts another one."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(call_main([Path(command[0]).name, *command[1:]]))
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def read_memory(pid: int) -> int:
    """The bytes that a process and its children hold, those that they share with each other as often."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def measure_disk(folder: Path) -> int:
    """The bytes of the files below a folder."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def read_text(path: Path) -> str:
    """The beginning and the end of what a child wrote."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        head = file.read(MOST_OUTPUT)
        file.seek(max(file.tell(), path.stat().st_size - MOST_OUTPUT))
        return (head + file.read()).decode("utf-8", "backslashreplace")
