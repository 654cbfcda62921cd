"""Give the tools what strangers might: `uv run python tools/fuzz.py --minutes 10 --seed 1`.

Hypothesis makes recipes, chat templates, files of models, journals and data (fuzzing/*.py, a module a kind): valid ones
with something broken in them, and attacks. Each is put into a folder of its own, and a command is run on it in a child
of a process that has imported everything (fuzzing/server.py). The command has to end in time and within 2 GiB, with a
documented exit code and no traceback; to change nothing but its own folder; to print nothing that a terminal obeys. The
same seed makes the same examples in the same order.

What fails is made smaller for a few seconds and saved; `--example FILE` runs it again.
"""

import argparse
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path

import hypothesis
from fuzzing import archives, example, headers, journals, recipes, server, templates
from fuzzing.example import Example
from fuzzing.judging import FAULTS, Fault, find_fault
from fuzzing.shrinking import shrink
from hypothesis.configuration import set_hypothesis_home_dir
from impruver_core.cli.console import format_table, make_visible

SECONDS = 10.0  # that a command may take, on a machine of this speed:
REFERENCE = 0.3  # seconds that server.measure_speed takes on it
PATIENCE = 4  # times that: who takes longer than this hangs, who ends before may be slow
BATCH = 25  # examples of a kind in a row
SHRINKING = 10.0  # seconds for a fault, and no more than
SHRINKING_SHARE = 0.2  # of all the time
STRATEGIES = {
    "recipes": recipes.build_recipes,
    "templates": templates.build_templates,
    "headers": headers.build_headers,
    "journals": journals.build_journals,
    "archives": archives.build_archives,
}


@dataclass
class Session:
    """Servers at work until a deadline, and what was found; each one's slot has the number of its connection."""

    root: Path
    connections: list[Connection]
    deadline: float
    factor: float = 1.0  # by which this machine is slower than the one that SECONDS are for

    @property
    def limit(self) -> float:
        """The seconds that a command may take here."""
        return SECONDS * self.factor

    def measure_factor(self, *numbers: int) -> None:
        """Has these servers work at once, and takes the slowest; the limit only grows."""
        for number in numbers:
            self.connections[number].send(None)
        seconds = max(self.connections[number].recv() for number in numbers)
        self.factor = max(self.factor, seconds / REFERENCE)

    def send(self, number: int, tried: Example, times: int = 1) -> None:
        """Has a server begin with an example, for so many times the limit at most."""
        slot = self.root / "slots" / str(number)
        example.place(tried, slot / "work", self.root / "samples", slot / "home")
        seconds = min(times * self.limit, self.deadline - time.monotonic())
        self.connections[number].send((tried.command, max(0.0, seconds)))

    def judge(self, outcome: server.Outcome) -> Fault | None:
        """The fault of an outcome; there is no hang where the session itself came to its end."""
        fault = find_fault(outcome)
        return None if fault and fault.kind == "hang" and time.monotonic() > self.deadline else fault

    def try_out(self, number: int, tried: Example) -> Fault | None:
        """Runs an example from its beginning to its end."""
        self.send(number, tried)
        return self.judge(self.connections[number].recv())

    def confirm(self, number: int, tried: Example, fault: Fault) -> Fault | None:
        """Whether a hang is one: it is tried again with patience, and with this machine as slow as it is by now.

        What comes to its end then is slow if it took as much of a processor; else others had it.
        """
        if fault.kind != "hang":
            return fault
        self.measure_factor(number)
        self.send(number, tried, PATIENCE)
        outcome = self.connections[number].recv()
        again = self.judge(outcome)
        if again is not None or outcome.ended == "time" or outcome.cpu < self.limit:
            return again
        return Fault("slow", fault.key, f"ended after {outcome.cpu:.1f} s of CPU time\n{fault.detail}")


@dataclass
class Findings:
    """The faults that were found, each once, saved in a folder."""

    folder: Path
    seed: int
    shrinking: float  # seconds left for it
    counts: Counter = field(default_factory=Counter)  # of (kind, "examples" or a fault's kind)
    files: dict[tuple[str, str], Path] = field(default_factory=dict)  # fault's kind and key → saved example

    def add(self, session: Session, number: int, tried: Example, fault: Fault) -> None:
        """Counts a fault; one that is new is made smaller, saved and printed."""
        self.counts[tried.kind, fault.kind] += 1
        key = fault[:2]
        if key in self.files:
            return
        self.files[key] = self.folder / f"{len(self.files) + 1:03}-{tried.kind}-{fault.kind}.json"
        example.save(tried, self.files[key], seed=self.seed, fault=fault._asdict())
        start = time.monotonic()
        if fault.kind not in ("hang", "slow", "memory") and self.shrinking > 0:

            def fails(smaller: Example) -> bool:
                found = session.try_out(number, smaller)
                return found is not None and found[:2] == key

            tried = shrink(tried, fails, min(start + SHRINKING, session.deadline))
            example.save(tried, self.files[key], seed=self.seed, fault=fault._asdict())
            self.shrinking -= time.monotonic() - start
        print(make_visible(f"{tried.kind}: {fault.kind}: {fault.key} [{tried.attack}] {self.files[key]}"), flush=True)

    def format_summary(self, kinds: Sequence[str]) -> str:
        """The table, and where the faults are."""
        columns = ("examples", *FAULTS)
        rows = [(kind, *(self.counts[kind, column] for column in columns)) for kind in kinds]
        lines = [
            f"{kind}: {key}\n    uv run python tools/fuzz.py --example {path}"
            for (kind, key), path in self.files.items()
        ]
        return "\n".join([format_table(("KIND", *columns), rows), *map(make_visible, lines)])


def draw_examples(kind: str, strategy: hypothesis.strategies.SearchStrategy, seed: int, number: int) -> list[Example]:
    """The batch of this number: the same for the same seed."""
    drawn = []
    digest = hashlib.sha256(f"{seed} {kind} {number}".encode()).digest()

    @hypothesis.seed(int.from_bytes(digest[:8], "big"))
    @hypothesis.settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def draw(drawn_example):
        drawn.append(drawn_example)

    draw()
    return drawn


def list_examples(kinds: Sequence[str], samples: Path, seed: int) -> Iterator[Example]:
    """Examples of these kinds without end, a batch of each in turn."""
    strategies = {kind: STRATEGIES[kind](samples) for kind in kinds}
    for number in count():
        for kind, strategy in strategies.items():
            yield from draw_examples(kind, strategy, seed, number)


@contextmanager
def open_session(jobs: int, root: Path, deadline: float) -> Iterator[Session]:
    """Starts the servers, and measures this machine."""
    os.environ |= server.ENVIRONMENT
    pairs = [multiprocessing.Pipe() for _ in range(jobs)]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=server.serve, args=([theirs for _, theirs in pairs], root))
    process.start()
    for _, theirs in pairs:
        theirs.close()
    session = Session(root, [ours for ours, _ in pairs], deadline)
    try:
        try:
            session.measure_factor(*range(jobs))
        except (EOFError, ConnectionError):
            raise SystemExit("the tools don't do their work on what is valid: see above") from None
        yield session
    finally:
        for connection in session.connections:
            connection.close()
        process.join()


def fuzz(session: Session, findings: Findings, examples: Iterator[Example]) -> None:
    """Tries one example after another, one in each server, until the deadline."""
    idle, busy = list(range(len(session.connections))), {}
    for tried in examples:
        while not idle:
            idle = collect(session, findings, busy)
        if time.monotonic() > session.deadline:
            break
        number = idle.pop()
        session.send(number, tried)
        busy[number] = tried
    while busy:
        collect(session, findings, busy)


def collect(session: Session, findings: Findings, busy: dict[int, Example]) -> list[int]:
    """Waits until servers are done with their examples; their numbers."""
    ready = wait([session.connections[number] for number in busy])
    numbers = [number for number in busy if session.connections[number] in ready]
    for number in numbers:
        tried, fault = busy.pop(number), session.judge(session.connections[number].recv())
        fault = fault and session.confirm(number, tried, fault)
        findings.counts[tried.kind, "examples"] += 1
        if fault:
            findings.add(session, number, tried, fault)
    return numbers


def replay(session: Session, path: Path) -> int:
    """Runs a saved example, and prints what it does; 1 if it fails."""
    tried = example.load(path)
    fault = session.try_out(0, tried)
    fault = fault and session.confirm(0, tried, fault)
    print(f"{' '.join(tried.command)}\n{', '.join(tried.files)}")
    for name in ("out", "err", "stack"):
        print(make_visible((session.root / "slots/0" / f"{name}.log").read_text("utf-8", "replace")[-5000:]))
    print(make_visible(f"{fault.kind}: {fault.key}") if fault else "no fault")
    return int(fault is not None)


def main() -> int:
    """Fuzzes; returns 1 if a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=10, help="how long, from the start of the program (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same examples (default: 0)")
    parser.add_argument(
        "--only", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), metavar="KIND", help=", ".join(STRATEGIES)
    )
    parser.add_argument("--jobs", type=int, default=2, help="examples at once (default: 2)")
    parser.add_argument("--save", type=Path, help="folder for what fails (default: one for temporary files)")
    parser.add_argument("--example", type=Path, help="run this saved example, and no others")
    arguments = parser.parse_args()
    minutes = min(arguments.minutes, 2) if arguments.example else arguments.minutes
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        set_hypothesis_home_dir(root / "hypothesis")
        with open_session(1 if arguments.example else arguments.jobs, root, deadline) as session:
            if arguments.example:
                return replay(session, arguments.example)
            folder = arguments.save or Path(tempfile.mkdtemp(prefix="fuzz-found-"))
            folder.mkdir(parents=True, exist_ok=True)
            limit = f"{session.limit:.1f} s ({SECONDS:g} s, this machine being slower by {session.factor:.2f})"
            print(f"a command may take {limit}; what fails is saved in {folder}", flush=True)
            findings = Findings(folder, arguments.seed, SHRINKING_SHARE * 60 * minutes)
            fuzz(session, findings, list_examples(arguments.only, root / "samples", arguments.seed))
    print(findings.format_summary(arguments.only))
    return int(bool(findings.files))


if __name__ == "__main__":
    raise SystemExit(main())
