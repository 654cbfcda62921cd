"""The four tools: their programs, the names that `impruver run` knows them by, where they are on this machine."""

import sys
from dataclasses import dataclass
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.system import find_program


@dataclass(frozen=True)
class Tool:
    """`name` is the first impruver's name of it; the program is named like the package."""

    name: str
    short: str
    does: str


TOOLS = {
    "impruver-compose": Tool("compose_dataset", "compose", "data sets into tokenized, masked train and val JSONL"),
    "impruver-train": Tool("finetune", "train", "train a model on them: LoRA, QLoRA, full, from scratch"),
    "impruver-gguf": Tool("convert_gguf", "gguf", "the trained model into GGUF, quantized and checked"),
    "impruver-chat": Tool("chat", "chat", "talk to the trained model, or answer a file of questions"),
}
NAMES = {name: package for package, tool in TOOLS.items() for name in (tool.name, tool.short, package)}


def find_tool(package: str) -> str | None:
    """The tool's program beside this Python, else on PATH, else None."""
    beside = Path(sys.executable).parent / package
    return str(beside) if beside.is_file() else find_program(package)


def require_program(package: str) -> str:
    """As `find_tool`; ImpruverError with the command that installs an absent tool."""
    program = find_tool(package)
    if program is None:
        raise ImpruverError(f"{package} is not installed; install it with: pip install {package}")
    return program
