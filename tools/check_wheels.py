"""Builds every member and installs each wheel alone: `uv run python tools/check_wheels.py [NAME …]`.

For each member: an empty environment, the wheel by itself (siblings from the same build), `python -I -c "import …"`
from another folder, --help and --version of its command, the recipes found; what must not come along stays away. Where
all are checked, each tool then does its step of the quickstart, each from its own environment, on the files of the one
before.
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


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The command's stdout; SystemExit with all that it said where it fails."""
    words = [str(part) for part in command]
    pipes = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(words, cwd=cwd, env=os.environ | environment, **pipes)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def check(name: str, folder: Path, wheels: Path, place: Path) -> str:
    """Installs one wheel alone and tries it; a line of what was found."""
    environment = place / name
    python = environment / "bin" / "python"
    run("uv", "venv", "-q", "--python", sys.executable, environment, cwd=place)
    run("uv", "pip", "install", "-q", "--python", python, "--find-links", wheels, name, cwd=place)
    run("uv", "pip", "check", "--python", python, cwd=place)
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


def work(name: str, place: Path) -> None:
    """A tool's own step, from its environment alone, without a hub and in an empty home."""
    folder, home = place / "work", place / "home"
    folder.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    for command in WORK[name]:
        program, *words = command.split()
        surroundings = {"PATH": f"{place / name / 'bin'}:/usr/bin:/bin", "HOME": str(home), "HF_HUB_OFFLINE": "1"}
        told = run(place / name / "bin" / program, *words, cwd=folder, **surroundings)
        print(f"  {command}\n    {told.strip().splitlines()[-1]}", flush=True)


def main() -> int:
    """Runs the checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="members to check (default: all)")
    names = parser.parse_args().names
    if shutil.which("uv") is None:
        raise SystemExit("uv is not on PATH: pip install uv")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build(place / "wheels")
        for name, member in sorted(members().items(), key=lambda pair: [*WORK].index(pair[0])):
            if not names or name in names:
                print(check(name, member, place / "wheels", place), flush=True)
                if not names:
                    work(name, place)
                shutil.rmtree(place / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
