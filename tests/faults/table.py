"""The table: faults by name, each a function that runs a tool in a workspace with something going wrong.

A cell is a fault and a tool. It passes where the outputs are right and complete, or there was one message and nothing
is half-written; and where the same command afterwards, without the fault, gives what an undisturbed run gives, and
leaves nothing else behind.
"""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults.workspace import TOOLS, Ended, Project, Workspace, catches_signals, finish, wait_until
from impruver_core.io.atomic import remove_path
from support.damage import flip, zero

LARGE = (".jsonl", ".gguf", ".safetensors")  # outputs that are no manifests
STOPS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}


@dataclass
class Cell:
    """What is known of a cell while it runs."""

    workspace: Workspace
    seconds: float  # that an undisturbed run takes here
    ended: list[Ended] = field(default_factory=list)
    killed: bool = False  # by a signal that no process can answer: nobody could clear anything away
    repaired: Callable[[], None] = lambda: None  # puts right what the user would have to


Fault = Callable[[Cell], None]


def run_plainly(cell: Cell, **options) -> None:
    cell.ended.append(cell.workspace.run(**options))


def send(name: str, share: float) -> Fault:
    """The signal comes after this share of the time that a run takes."""

    def apply(cell: Cell) -> None:
        process = cell.workspace.start()
        wait_until(lambda: catches_signals(process), process)  # before, Python is starting, and the system ends it
        time.sleep(share * cell.seconds)
        send_to(process, name, cell)

    return apply


def send_midway(name: str, times: int = 1) -> Fault:
    """The signal comes as soon as there is something that could be half-written."""

    def apply(cell: Cell) -> None:
        process = cell.workspace.start()
        wait_until(lambda: cell.workspace.find(cell.workspace.tool.begun), process)
        send_to(process, name, cell, times)

    return apply


def send_to(process: subprocess.Popen, name: str, cell: Cell, times: int = 1) -> None:
    for _ in range(times):
        process.send_signal(getattr(signal, name))
    cell.killed = name == "SIGKILL"
    cell.ended.append(finish(process))


def with_stream(number: int, kind: str) -> Fault:
    """stdout (1) or stderr (2) is full, closed, without a reader, or never read."""

    def apply(cell: Cell) -> None:
        name, ours = {1: "stdout", 2: "stderr"}[number], None
        if kind == "closed":
            process = cell.workspace.start(preexec_fn=lambda: os.close(number))
        elif kind == "full":
            with open("/dev/full", "w") as full:
                process = cell.workspace.start(**{name: full})
        else:
            ours, theirs = os.openpty() if kind == "an unread terminal" else os.pipe()
            if kind == "an unread pipe":
                fill(theirs)
            process = cell.workspace.start(**{name: theirs})
            os.close(theirs)
            if kind == "without a reader":
                os.close(ours)
                ours = None
        cell.ended.append(finish(process))
        if ours is not None:
            os.close(ours)

    return apply


def fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    try:
        while True:
            os.write(pipe, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(pipe, True)


def with_limit(kind: int, value: int) -> Fault:
    return lambda cell: run_plainly(cell, preexec_fn=lambda: resource.setrlimit(kind, (value, value)))


def with_environment(**changes: str | None) -> Fault:
    return lambda cell: run_plainly(cell, env=cell.workspace.environment(**changes))


def with_cache_file(cell: Cell) -> None:
    """The folder of caches is a file."""
    cache = cell.workspace.folder / "cache"
    if cache.exists():
        shutil.move(cache, cache.with_name("moved"))
    cache.write_text("x")

    def repair() -> None:
        cache.unlink()
        if cache.with_name("moved").exists():
            shutil.move(cache.with_name("moved"), cache)

    run_plainly(cell)
    cell.repaired = repair


def damage_cache(change: Callable[[Path], object]) -> Fault:
    """All files of the cache are changed, and the outputs have to be made again."""

    def apply(cell: Cell) -> None:
        for path in cell.workspace.find(cell.workspace.tool.cache):
            if path.is_file() and path.suffix != ".lock":
                change(path)
        forget_outputs(cell.workspace)
        run_plainly(cell)

    return apply


def forget_outputs(workspace: Workspace) -> None:
    for path in workspace.find(workspace.tool.outputs):
        remove_path(path)


def damage_input(change: Callable[[Path], object], which: int = 0) -> Fault:
    """What the outputs are made of is changed before the run, and right again after it."""

    def apply(cell: Cell) -> None:
        path = cell.workspace.folder / cell.workspace.tool.inputs[which]
        content = path.read_bytes()
        change(path)
        run_plainly(cell)

        def repair() -> None:
            path.write_bytes(content)
            remove_own_outputs(cell.workspace)

        cell.repaired = repair

    return apply


def change_input_midway(change: Callable[[Path], object], which: int = 0) -> Fault:
    """What the outputs are made of is changed while it is read, and right again after the run."""

    def apply(cell: Cell) -> None:
        path = cell.workspace.folder / cell.workspace.tool.inputs[which]
        content = path.read_bytes()
        process = cell.workspace.start()
        if wait_until(lambda: is_open(process.pid, path) or cell.workspace.find(cell.workspace.tool.begun), process):
            change(path)
        cell.ended.append(finish(process))

        def repair() -> None:
            path.write_bytes(content)
            remove_own_outputs(cell.workspace)

        cell.repaired = repair

    return apply


def remove_own_outputs(workspace: Workspace) -> None:
    """What was made of other inputs is none of the run that is compared."""
    for path in workspace.find(workspace.tool.outputs):
        remove_path(path)


def is_open(pid: int, path: Path) -> bool:
    try:
        return any(os.path.realpath(each) == str(path) for each in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def replace_by_same_size(path: Path) -> None:
    """Other rows, or other weights, of the same length: written in place, with the time of before."""
    before, content = os.stat(path), bytearray(path.read_bytes())
    content[-40:-30] = b"0123456789"
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_whole(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    other.replace(path)


def damage_manifest(text: bytes) -> Fault:
    def apply(cell: Cell) -> None:
        path = cell.workspace.folder / cell.workspace.tool.manifest
        content = path.read_bytes()
        path.write_bytes(text)
        run_plainly(cell)
        cell.repaired = lambda: path.write_bytes(content)

    return apply


def plant_leftovers(cell: Cell) -> None:
    """What a killed run of an earlier version, or of another machine, may have left."""
    tool, folder = cell.workspace.tool, cell.workspace.folder
    manifest = folder / tool.manifest
    manifest.parent.mkdir(parents=True, exist_ok=True)
    outputs = {"compose": "train.jsonl", "train": "metrics.jsonl", "gguf": "model-q8_0.gguf", "chat": "answers.jsonl"}
    manifest.with_name(f".{manifest.name}.4000000.part").write_text("{")
    if tool.name != "train":
        manifest.with_name(f".{outputs[tool.name]}.staged").write_text("half")
    for entry in filter(Path.is_dir, cell.workspace.find(tool.cache)):  # its own: the others' are theirs to clear
        (entry / ".000000.arrow.4000000.part").write_text("half")
    run_plainly(cell)


def plant_journal(cell: Cell) -> None:
    """A record of renames that is cut off."""
    path = cell.workspace.folder / f"{cell.workspace.tool.manifest}.pending"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"files": [{"path": "x')
    run_plainly(cell)
    cell.repaired = lambda: path.unlink(missing_ok=True)


def change_output(cell: Cell) -> None:
    """Somebody wrote into an output since."""
    outputs = [path for path in cell.workspace.find(cell.workspace.tool.outputs) if path.suffix in LARGE]
    path = max(outputs, key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    flip(path)
    run_plainly(cell)
    cell.repaired = lambda: path.write_bytes(content)


def remove_output(cell: Cell) -> None:
    path = min(path for path in cell.workspace.find(cell.workspace.tool.outputs) if path.suffix in (".jsonl", ".gguf"))
    content = path.read_bytes()
    path.unlink()
    run_plainly(cell)
    if cell.ended[-1].code:
        cell.repaired = lambda: path.write_bytes(content)


def run_twice_at_once(cell: Cell) -> None:
    processes = [cell.workspace.start() for _ in range(2)]
    cell.ended += map(finish, processes)


def kill_child(cell: Cell) -> None:
    """A worker process, or that of llama.cpp, is killed."""
    process = cell.workspace.start()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def kill() -> bool:
        try:
            numbers = children.read_text().split()
        except OSError:
            return False
        for number in map(int, numbers):
            command = Path(f"/proc/{number}/cmdline").read_bytes()
            if b"tokenizer_trial" not in command:  # of which the parent hears in any case
                os.kill(number, signal.SIGKILL)
                return True
        return False

    wait_until(kill, process)
    cell.ended.append(finish(process))


BEFORE: dict[str, Fault] = {
    **{f"{name} after {share:.0%}": send(name, share) for name in (*STOPS, "SIGKILL") for share in (0.3, 0.6, 0.9)},
    **{f"{name} midway": send_midway(name) for name in (*STOPS, "SIGKILL")},
    "SIGTERM twice": send_midway("SIGTERM", 2),
    "stderr full": with_stream(2, "full"),
    "stderr closed": with_stream(2, "closed"),
    "stderr without a reader": with_stream(2, "without a reader"),
    "stderr an unread pipe": with_stream(2, "an unread pipe"),
    "stderr an unread terminal": with_stream(2, "an unread terminal"),
    "stdout full": with_stream(1, "full"),
    "stdout closed": with_stream(1, "closed"),
    "stdout without a reader": with_stream(1, "without a reader"),
    "stdin closed": lambda cell: run_plainly(cell, preexec_fn=lambda: os.close(0)),
    "few open files": with_limit(resource.RLIMIT_NOFILE, 24),
    "little memory": with_limit(resource.RLIMIT_DATA, 120 << 20),
    "files of 4 kB": with_limit(resource.RLIMIT_FSIZE, 4096),
    "no home": with_environment(HOME=None),
    "no temporary folder": with_environment(TMPDIR="/nowhere"),
    "the locale C": with_environment(LC_ALL="C", LANG="C", PYTHONUTF8="0"),
    "the cache is a file": with_cache_file,
    "the input changed midway": change_input_midway(replace_by_same_size),
    "the input replaced midway": change_input_midway(replace_whole),
    "the input removed midway": change_input_midway(Path.unlink),
    "the other input changed midway": change_input_midway(replace_by_same_size, -1),
    "the input cut": damage_input(lambda path: path.write_bytes(path.read_bytes()[:-77])),
    "the input emptied": damage_input(lambda path: path.write_bytes(b"")),
    "the input garbage": damage_input(lambda path: path.write_bytes(os.urandom(4000))),
    "the other input cut": damage_input(lambda path: path.write_bytes(path.read_bytes()[:-77]), -1),
    "leftovers": plant_leftovers,
    "a journal cut off": plant_journal,
    "two at once": run_twice_at_once,
    "a child killed": kill_child,
}
AFTER: dict[str, Fault] = {  # an undisturbed run
    "the cache flipped": damage_cache(flip),
    "the cache zeroed": damage_cache(zero),
    "the cache cut": damage_cache(lambda path: path.write_bytes(path.read_bytes()[:-5])),
    "the cache emptied": damage_cache(lambda path: path.write_bytes(b"")),
    "the cache garbage": damage_cache(lambda path: path.write_bytes(os.urandom(500))),
    "the cache gone": damage_cache(Path.unlink),
    "the manifest garbage": damage_manifest(b"\x00garbage"),
    "the manifest emptied": damage_manifest(b""),
    "an output changed": change_output,
    "an output removed": remove_output,
}
FAULTS = BEFORE | AFTER


def judge(fault: str, tool: str, project: Project, folder: Path) -> list[str]:
    """Runs a cell in `folder`; what is wrong with it, nothing where it passes."""
    when = "before" if fault in BEFORE else "after"
    cell = Cell(project.copy(when, tool, folder), project.seconds[tool])
    expected, before = project.expected[tool], cell.workspace.read_outputs()
    FAULTS[fault](cell)
    faults = [wrong for ended in cell.ended for wrong in judge_end(ended, TOOLS[tool].program)]
    codes, left = [ended.code for ended in cell.ended], cell.workspace.read_outputs()
    if 0 in codes and when == "before" and left != expected and not is_of_changed_input(cell, left, expected):
        faults.append(f"exit 0, and outputs that are not right: {compare(left, expected)}")
    half = {} if 0 in codes or cell.killed or is_recorded(left) else {*left} - {*expected, *before, *allowed(tool)}
    if half:
        faults.append(f"half-written: {sorted(half)}")
    cell.repaired()
    again = cell.workspace.run()
    if again.code:
        faults.append(f"the next run ends with {again.code}: {last_line(again.err)}")
    if cell.workspace.read_outputs() != expected:
        faults.append(f"the next run's outputs are not right: {compare(cell.workspace.read_outputs(), expected)}")
    if leftovers := cell.workspace.list_leftovers():
        faults.append(f"left behind: {leftovers}")
    return faults


def judge_end(ended: Ended, program: str) -> list[str]:
    """What is wrong with how a command ended."""
    lines = (ended.err or "").splitlines()
    wrong = [f"it says {line!r}" for line in lines if line.startswith("Traceback") or "fault of ours" in line]
    if ended.code == 124:
        wrong.append("it hangs")
    if ended.code not in (0, -9, 124) and ended.err is not None and lines:
        messages = [line for line in lines if line.startswith(f"{program}: ")]
        if len(messages) != 1:
            wrong.append(f"exit {ended.code} with {len(messages)} messages: {lines[-1]}")
    if ended.code not in (0, 2, 3, -9, *STOPS.values()):
        wrong.append(f"exit {ended.code}: {last_line(ended.err)}")
    return wrong


def allowed(tool: str) -> list[str]:
    """What of an unfinished run stays for the next one."""
    return ["model/recipe.yaml", "model/impruver.json.unfinished", "model/metrics.jsonl"] if tool == "train" else []


def is_recorded(left: dict[str, bytes]) -> bool:
    """Whether it was cut off while it put files in place, which its record has the next run finish."""
    return any(name.endswith(".pending") for name in left)


def is_of_changed_input(cell: Cell, left: dict[str, bytes], expected: dict[str, bytes]) -> bool:
    """Whether whole outputs were made of inputs that were changed before they were read: another, right, result."""
    changed = cell.repaired is not Cell.repaired
    return changed and left.keys() == expected.keys()


def compare(one: dict[str, bytes], other: dict[str, bytes]) -> str:
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return ", ".join(f"{name} ({len(one.get(name, b''))} bytes, not {len(other.get(name, b''))})" for name in names)


def last_line(text: str | None) -> str:
    return (text or "").strip().rpartition("\n")[2]
