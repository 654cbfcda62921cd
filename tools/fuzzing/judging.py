"""Judges what a command did: the faults, and by what two of them are the same."""

import re
from typing import NamedTuple

from fuzzing.server import Outcome

DOCUMENTED_CODES = (0, 2, 3, 130)  # done, something to put right, a check failed, stopped by Ctrl+C
FAULTS = ("traceback", "hang", "slow", "crash", "memory", "other")
TRACEBACK = re.compile(r"^ *Traceback \(most recent call last\):", re.MULTILINE)
FRAME = re.compile(
    r'File "(?:[^"]*/)?((?:impruver_\w+|site-packages|python3\.\d+|fuzzing)/[^"]+)", line (\d+),? in (\S+)'
)
RENDERING = "impruver_core/chat_template/rendering/"  # who has a template rendered tells more
PANIC = re.compile(r"panicked at ([^\n]*)")
# What a terminal obeys, and marks that turn the order of characters; line ends and tabs are no harm.
OBEYED = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NO_MEMORY = re.compile(r"error: out of (GPU )?memory")  # ours, for what nobody foresaw
NO_DISK = re.compile(r"File too large|disk is full")


class Fault(NamedTuple):
    """A fault: its kind, what it is known by, and what was seen of it."""

    kind: str
    key: str
    detail: str


def find_fault(outcome: Outcome) -> Fault | None:
    """The worst fault of an outcome; None where the command did as it is documented to do."""
    output = f"{outcome.out}\n{outcome.err}"
    where, tail = find_frame(outcome.stack.rpartition("Current thread")[2], first=True), output.strip()[-3000:]
    if outcome.ended == "time":
        return Fault("hang", where, f"stopped after {outcome.seconds:.1f} s\n{outcome.stack}\n{tail}")
    if outcome.ended == "memory":
        return Fault("memory", where, f"{outcome.memory >> 20} MiB\n{outcome.stack}\n{tail}")
    panic = PANIC.search(output)
    if outcome.ended == "signal" or panic:
        key = f"{panic[1]}, {find_frame(output)}" if panic else f"signal {outcome.code}, {where}"
        return Fault("crash", key, f"{outcome.ended} {outcome.code}\n{outcome.stack}\n{tail}")
    if TRACEBACK.search(output):
        text = output[[found.start() for found in TRACEBACK.finditer(output)][-1] :]
        error = next((line for line in text.splitlines()[1:] if line[:1].strip()), "")
        return Fault("traceback", f"{normalize(error.partition(':')[0])} at {find_frame(text)}", text[-3000:])
    if NO_MEMORY.search(output):
        return Fault("memory", f"it says so: {normalize(NO_MEMORY.search(output)[0])}", tail)
    return find_other(outcome, output, tail)


def find_other(outcome: Outcome, output: str, tail: str) -> Fault | None:
    """Files changed elsewhere, a disk that is filled, what a terminal obeys, an exit code that is not documented."""
    if outcome.changed:
        names = [re.sub(r".*/(home|samples)", r"\1", path) for path in outcome.changed]
        return Fault("other", f"changed {names[0]}", "\n".join([*outcome.changed, tail]))
    if outcome.ended == "disk" or NO_DISK.search(output):
        return Fault("other", "fills the disk", tail)
    if obeyed := OBEYED.search(output):
        line = output[output.rfind("\n", 0, obeyed.start()) + 1 :].partition("\n")[0]
        stream = "stdout" if OBEYED.search(outcome.out) else "stderr"
        return Fault("other", f"U+{ord(obeyed[0]):04X} on {stream}: {normalize(line)[:60]}", repr(line[:1000]))
    if outcome.code not in DOCUMENTED_CODES:
        return Fault("other", f"exit code {outcome.code}: {normalize(tail[-200:])[-60:]}", tail)
    return None


def find_frame(text: str, first: bool = False) -> str:
    """The innermost frame of a traceback that is in our sources, else the innermost; `first`: it stands first."""
    frames = FRAME.findall(text)
    if first:
        frames.reverse()
    own = [frame for frame in frames if frame[0].startswith("impruver_") and not frame[0].startswith(RENDERING)]
    path, _, function = (own or frames or [("somewhere", "", "")])[-1]
    return f"{path}: {function}"


def normalize(text: str) -> str:
    """A message without what differs between two of the same."""
    return re.sub(r"\d+", "#", re.sub(r"(['\"`]).*?\1", "'…'", OBEYED.sub("?", text))).strip()
