"""A small project in a folder: the four tools one after another, and what each of them leaves undisturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support.cli import script
from support.jsonl import write_jsonl
from support.models import QUICKSTART, copy_tokenizer, make_llama
from support.recipes import write_recipe

DATA = QUICKSTART.parent / "countries.jsonl"
ROWS, QUESTIONS = 150, 24
RECIPE = {
    "output_dir": "./model",
    "train_path": "data/train.jsonl",
    "val_path": "data/val.jsonl",
    "datasets": [{"name": "./rows.jsonl", "converter": "impruver.instruction_to_messages"}],
    "tokenizer": {"name": "./tokenizer", "max_tokens_count": 128},
    "model": {"name": "./base", "dtype": "fp32"},
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "trainer": {
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "save_steps": 3,
        "save_total_limit": 3,
        "logging_steps": 1,
        "eval_strategy": "no",
        "use_cpu": True,
    },
    "gguf": {"quantization_levels": ["q8_0", "q4_0"]},
    "chat": {"do_sample": False, "max_new_tokens": 24, "batch_size": 4},
}
LEFTOVERS = re.compile(
    r".*(\.part|\.staged|\.pending|\.lock|\.partial|\.incomplete)|\.(merged|adapter)\..*|stopped-\d+"
)
TIMES = {"seconds", "tokens_per_second", "time", "started", "ended", "date"}  # keys of JSON that may differ
WITH_PATHS = ("recipe.yaml", "adapter_config.json")  # of training: with the workspace's own path in them
UNLIKE = ("speed.jsonl", "report.html", "metrics.jsonl")  # of training: with times in them


@dataclass(frozen=True)
class Tool:
    """How a tool is run in a workspace, what it reads, and what it leaves."""

    name: str
    flags: tuple[str, ...]
    outputs: tuple[str, ...]  # globs
    inputs: tuple[str, ...]  # the files that its outputs are made of
    manifest: str
    cache: tuple[str, ...]  # globs of what can be made again
    begun: tuple[str, ...]  # globs of what is there once the work is under way

    @property
    def program(self) -> str:
        return f"impruver-{self.name}"


GGUF, ANSWERS = "model/gguf/model-q8_0.gguf", "answers.jsonl"
TOOLS = {
    "compose": Tool(
        "compose",
        ("--num_proc", "2"),
        ("data/*",),
        ("rows.jsonl",),
        "data/train.jsonl.manifest.json",
        ("cache/compose/**/*", "cache/datasets/**/*"),
        ("cache/compose/*/*", "cache/compose/*/.*"),
    ),
    "train": Tool(
        "train",
        (),
        ("model/*",),
        ("base/model.safetensors", "data/train.jsonl"),
        "model/impruver.json",
        ("cache/tokens/**/*",),
        ("model/checkpoint-*/*",),
    ),
    "gguf": Tool(
        "gguf",
        ("--verify", "false"),
        ("model/gguf/*",),
        ("base/model.safetensors", "model/adapter_model.safetensors"),
        "model/gguf/impruver.json",
        (),
        ("model/gguf/.*.staged",),
    ),
    "chat": Tool(
        "chat",
        ("--gguf", GGUF, "--input", "questions.jsonl", "--output", ANSWERS),
        (f"{ANSWERS}*",),
        (GGUF, "questions.jsonl"),
        f"{ANSWERS}.manifest.json",
        (),
        (f".{ANSWERS}.partial",),
    ),
}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote; None for a stream that was not read."""

    code: int
    out: str
    err: str | None


class Workspace:
    """A folder with inputs and cache in which a tool is run."""

    def __init__(self, folder: Path, tool: Tool):
        self.folder, self.tool = folder, tool

    def command(self) -> list[str]:
        return [str(script(self.tool.program)), "--config", "recipe.yaml", *self.tool.flags]

    def environment(self, **changes: str | None) -> dict[str, str]:
        own = {"IMPRUVER_CACHE": str(self.folder / "cache"), "HOME": str(self.folder / "home")}
        own |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        return {name: value for name, value in (os.environ | own | changes).items() if value is not None}

    def start(self, **options) -> subprocess.Popen:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {"env": self.environment(), **pipes, "start_new_session": True} | options
        return subprocess.Popen(self.command(), cwd=self.folder, **options)

    def run(self, **options) -> Ended:
        return finish(self.start(**options))

    def find(self, globs: tuple[str, ...]) -> list[Path]:
        """The files and folders that these globs match."""
        return sorted({path for pattern in globs for path in self.folder.glob(pattern)})

    def read_outputs(self) -> dict[str, bytes]:
        """What the tool left, without times and the workspace's own path; directories are left out."""
        files = [path for path in self.find(self.tool.outputs) if path.is_file() and path.name not in UNLIKE]
        return {str(path.relative_to(self.folder)): self.read_normalized(path) for path in files}

    def read_normalized(self, path: Path) -> bytes:
        content = path.read_bytes().replace(str(self.folder).encode(), b"@")
        if path.suffix == ".json":
            with suppress(ValueError):  # a damaged one is as it is
                content = json.dumps(drop_times(json.loads(content)), sort_keys=True).encode()
        return content

    def list_leftovers(self) -> list[str]:
        """What a run should have taken away again, caches included; locks of `datasets` are no files of ours."""
        found = [path for path in self.folder.rglob("*") if LEFTOVERS.fullmatch(path.name)]
        ours = [path for path in found if path.suffix != ".lock" or "datasets" not in path.parts]
        return sorted(str(path.relative_to(self.folder)) for path in ours)


def drop_times(value):
    """A JSON value without the entries whose keys are of times, nor sizes and checksums of files that hold some."""
    if isinstance(value, dict):
        named = str(value.get("path", "")).rpartition("/")[2]
        unlike = {"bytes", "xxh3", "sha256"} if named in (*UNLIKE, *WITH_PATHS) else set()
        return {key: drop_times(item) for key, item in value.items() if key not in TIMES | unlike}
    return [drop_times(item) for item in value] if isinstance(value, list) else value


def finish(process: subprocess.Popen, seconds: float = 120) -> Ended:
    """Waits for a process to end; one that hangs is killed with all that it started, and told by code 124."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        return Ended(124, decode(out), decode(err))
    return Ended(process.returncode, decode(out), decode(err))


def decode(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "replace")


def catches_signals(process: subprocess.Popen) -> bool:
    """Whether a process has a handler of SIGHUP, as ours do from their entry point on."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return True
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) & 1 << signal.SIGHUP - 1)


def wait_until(done: Callable[[], object], process: subprocess.Popen, seconds: float = 60) -> bool:
    """Waits until `done()` is true, looking often; False where the process ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if done():
            return True
        time.sleep(0.002)
    return False


class Project:
    """The workspaces before and after each tool's undisturbed run, in `root`; made once, then copied."""

    def __init__(self, root: Path):
        self.root = root
        self.expected: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}

    def build(self) -> None:
        """Makes the inputs and runs the tools one after another."""
        work = self.root / "work"
        fill_inputs(work)
        for name, tool in TOOLS.items():
            shutil.copytree(work, self.root / f"before-{name}", symlinks=True)
            workspace, start = Workspace(work, tool), time.monotonic()
            ended = workspace.run()
            assert ended.code == 0, ended.err
            self.seconds[name] = time.monotonic() - start
            self.expected[name] = workspace.read_outputs()
            assert workspace.list_leftovers() == [], workspace.list_leftovers()
            shutil.copytree(work, self.root / f"after-{name}", symlinks=True)

    def copy(self, when: str, tool: str, target: Path) -> Workspace:
        """A workspace as it was `before` or `after` the tool's run."""
        moved = tool == "train"  # whose folder knows its run by paths in full
        shutil.copytree(self.root / f"{'before' if moved else when}-{tool}", target, symlinks=True)
        workspace = Workspace(target, TOOLS[tool])
        if moved and when == "after":
            assert workspace.run().code == 0
        return workspace


def fill_inputs(folder: Path) -> None:
    make_llama(folder / "base", QUICKSTART, vocab_size=2048, max_position_embeddings=512)
    (folder / "tokenizer").mkdir()
    copy_tokenizer(QUICKSTART, folder / "tokenizer")
    (folder / "home").mkdir()
    rows = list(read_rows(DATA))
    write_jsonl(folder / "rows.jsonl", rows[:ROWS])
    questions = [{"prompt": row["instruction"]} for row in rows[:QUESTIONS]]
    write_jsonl(folder / "questions.jsonl", questions)
    write_recipe(folder / "recipe.yaml", RECIPE)


def read_rows(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
