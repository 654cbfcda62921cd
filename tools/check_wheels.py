"""Builds every member and installs each wheel alone: `uv run python tools/check_wheels.py [NAME …]`.

For each member: an empty environment, the wheel by itself (siblings from the same build), `python -I -c "import …"`
from another folder, --help and --version of its command, the recipes found; what must not come along stays away. Where
all are checked, each tool then does its step of the quickstart, each from its own environment, on the files of the one
before. Last `impruver demo` runs in an environment with all of them, and the GGUF file that it makes answers alone.

All of it on the newest Python that is found, or that --python names; where none is newer than this one, on this one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ABSENT = {
    "impruver-core": ("torch", "transformers"),
    "impruver-compose": ("torch",),
    "impruver-gguf": ("torch", "transformers"),
}
NEWEST = 14  # minor version of Python 3 for which every dependency has a wheel
TOGETHER = ("impruver-compose", "impruver-train", "impruver-gguf", "impruver-chat[gguf]")
DEMO = "impruver demo there"
TALK = "impruver-chat --gguf there/models/quickstart_tiny_full/gguf/model-q8_0.gguf --max_new_tokens 20"
MOST_BYTES = {"impruver-gguf": 200_000_000}
QUICK = "--config quickstart/tiny_full --set trainer.max_steps=5 --set trainer.eval_strategy=no"
WORK = {  # what each does alone, one after the other in one folder
    "impruver-configs": (),
    "impruver-core": ("impruver ls", "impruver cp quickstart/tiny_full mine.yaml", "impruver check --config mine.yaml"),
    "impruver-compose": (f"impruver-compose {QUICK}",),
    "impruver-train": (f"impruver-train {QUICK}",),
    "impruver-gguf": (f"impruver-gguf {QUICK}",),
    "impruver-chat": (
        f"impruver-chat {QUICK} --input val.quickstart_tiny.jsonl --output answers.jsonl --max_new_tokens 8",
    ),
}


def find_newest_python() -> Path:
    """The newest interpreter up to NEWEST on PATH, of pyenv or of uv; this process's where none is newer."""
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions"
    managed = home / ".local/share/uv/python"
    for minor in range(NEWEST, sys.version_info.minor, -1):
        on_path = shutil.which(f"python3.{minor}")
        installed = [*pyenv.glob(f"3.{minor}.*/bin/python"), *managed.glob(f"cpython-3.{minor}.*/bin/python3")]
        for path in [*([Path(on_path)] if on_path else []), *sorted(installed, reverse=True)]:
            if read_version(path) == (3, minor):  # a shim may stand for nothing
                return path
    return Path(sys.executable)


def read_version(python: Path) -> tuple[int, ...] | None:
    """The version of an interpreter, such as (3, 13); None where it does not run, or lacks what is needed."""
    code = "import sys, ctypes, lzma, sqlite3, ssl; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None


def members() -> dict[str, Path]:
    """Distribution → its folder, for every member of the workspace."""
    files = [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("packages/*/pyproject.toml")]
    return {project_of(file.parent)["name"]: file.parent for file in sorted(files)}


def project_of(folder: Path) -> dict:
    """The project table of a member."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def build(wheels: Path) -> None:
    """Builds every member's sdist, and its wheel from that."""
    run("uv", "build", "-q", "--all-packages", "--no-sources", "--out-dir", wheels, cwd=ROOT)


def run(*command: str | Path, cwd: Path, stdin: str = "", **environment: str) -> str:
    """The command's stdout; SystemExit with all that it said where it fails."""
    words = [str(part) for part in command]
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, input=stdin, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def install(names: tuple[str, ...], environment: Path, interpreter: Path, wheels: Path) -> Path:
    """Installs wheels with what they need into a new environment; its Python."""
    python, place = environment / "bin" / "python", environment.parent
    run("uv", "venv", "-q", "--python", interpreter, environment, cwd=place)
    run("uv", "pip", "install", "-q", "--python", python, "--find-links", wheels, *names, cwd=place)
    run("uv", "pip", "check", "--python", python, cwd=place)
    return python


def check(name: str, folder: Path, wheels: Path, place: Path, interpreter: Path = Path(sys.executable)) -> str:
    """Installs one wheel alone and tries it; a line of what was found."""
    environment = place / name
    python = install((name,), environment, interpreter, wheels)
    module = name.replace("-", "_")
    run(python, "-I", "-c", f"import {module}", cwd=place)
    project = project_of(folder)
    for script in project.get("scripts", {}):
        run(environment / "bin" / script, "--help", cwd=place)
        told = run(environment / "bin" / script, "--version", cwd=place)
        if project["version"] not in told:
            raise SystemExit(f"{script} --version says {told.strip()!r}, not {project['version']}")
    shipped = {path.name for path in (ROOT / "configs/impruver_configs").rglob("*.yaml")}
    found = {path.name for path in environment.rglob("impruver_configs/**/*.yaml")}
    if found != shipped:
        raise SystemExit(f"{name}: recipes missing {sorted(shipped - found)}, extra {sorted(found - shipped)}")
    for package in ABSENT.get(name, ()):
        if any(environment.glob(f"lib/*/site-packages/{package}")):
            raise SystemExit(f"{name} alone brings {package}")
    size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    if size > MOST_BYTES.get(name, size):
        raise SystemExit(f"{name} alone takes {size / 1e6:.0f} MB, at most {MOST_BYTES[name] / 1e6:.0f}")
    return f"{name} {project['version']}: installed alone, {size / 1e6:.0f} MB"


def work(commands: tuple[str, ...], environment: Path, stdin: str = "") -> None:
    """Commands in one folder, from an environment alone, without a hub and in an empty home."""
    folder, home = environment.parent / "work", environment.parent / "home"
    folder.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    surroundings = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for command in commands:
        program, *words = command.split()
        told = run(environment / "bin" / program, *words, cwd=folder, stdin=stdin, **surroundings)
        print(f"  {command}\n    {told.strip().splitlines()[-1]}", flush=True)


def check_together(interpreter: Path, wheels: Path, place: Path) -> None:
    """The quickstart's chain with all tools in one environment; its GGUF file answers drawn tokens without a recipe."""
    environment = place / "together"
    install(TOGETHER, environment, interpreter, wheels)
    work((DEMO,), environment)
    work((TALK,), environment, stdin="What is the capital of France?\n")


def main() -> int:
    """Runs the checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="members to check (default: all)")
    parser.add_argument("--python", type=Path, help="interpreter to check with (default: the newest that is found)")
    arguments = parser.parse_args()
    names, interpreter = arguments.names, arguments.python or find_newest_python()
    if shutil.which("uv") is None:
        raise SystemExit("uv is not on PATH: pip install uv")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each command compiles all that it imports again
    version = ".".join(map(str, read_version(interpreter) or ()))
    if interpreter == Path(sys.executable):
        print(f"no Python newer than {version} was found: the wheels are checked on that one", flush=True)
    else:
        print(f"the wheels are checked on Python {version}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build(place / "wheels")
        for name, member in sorted(members().items(), key=lambda pair: [*WORK].index(pair[0])):
            if not names or name in names:
                print(check(name, member, place / "wheels", place, interpreter), flush=True)
                if not names:
                    work(WORK[name], place / name)
                shutil.rmtree(place / name)
        if not names:
            check_together(interpreter, place / "wheels", place)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
