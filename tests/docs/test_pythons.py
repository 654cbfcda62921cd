"""Which Pythons the wheels are checked on, and that each dependency has a wheel for those that README names."""

import os
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from support import ROOT

PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), "manylinux2014_x86_64", "linux_x86_64"]


@pytest.fixture
def check_wheels(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return import_module("check_wheels")


def write_python(path: Path, prints: str, code: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {prints}\nexit {code}\n")
    path.chmod(0o755)


def test_the_newest_python_is_found_and_none_is_no_fault(check_wheels, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}{os.pathsep}/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    assert check_wheels.find_newest_python() == Path(sys.executable)
    write_python(tmp_path / "shims/python3.14", "", code=127)  # of pyenv, without such a version
    write_python(tmp_path / ".pyenv/versions/3.10.13/bin/python", "3 10")
    assert check_wheels.find_newest_python() == Path(sys.executable)
    for version, prints in (("3.12.1", "3 12"), ("3.14.0", "3 14"), ("3.14.1", "3 9"), ("3.15.0", "3 15")):
        write_python(tmp_path / f".pyenv/versions/{version}/bin/python", prints)
    assert check_wheels.find_newest_python() == tmp_path / ".pyenv/versions/3.14.0/bin/python"


def reach(packages: list[dict], environment: dict) -> list[dict]:
    """The packages of a lock that our members' wheels need on a platform, extras included."""
    by_name: dict[str, list[dict]] = {}
    for package in packages:
        by_name.setdefault(package["name"], []).append(package)

    def fits(entry: dict) -> bool:
        return "marker" not in entry or Marker(entry["marker"]).evaluate(environment)

    def holds(package: dict) -> bool:
        return any(Marker(marker).evaluate(environment) for marker in package.get("resolution-markers", ()))

    def fork(entry: dict) -> list[dict]:
        versions = [each for each in by_name[entry["name"]] if entry.get("version") in (None, each.get("version"))]
        return [each for each in versions if holds(each)] or versions

    waiting = [each for each in packages if each["name"].startswith("impruver-")]
    seen: dict[str, dict] = {}
    while waiting:
        package = waiting.pop()
        if package["name"] in seen:
            continue
        seen[package["name"]] = package
        extras = package.get("optional-dependencies", {}).values()
        entries = [*package.get("dependencies", ()), *(entry for extra in extras for entry in extra)]
        waiting += [each for entry in entries if fits(entry) for each in fork(entry)]
    return [package for package in seen.values() if "registry" in package["source"]]


def test_each_dependency_has_a_wheel_for_the_newest_python(check_wheels):
    minor = check_wheels.NEWEST
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    version = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    needed = reach(packages, default_environment() | linux | version)
    assert len(needed) > 50
    tags = {*cpython_tags((3, minor), platforms=PLATFORMS), *compatible_tags((3, minor), f"cp3{minor}", PLATFORMS)}
    without = [
        package["name"]
        for package in needed
        if not any(
            tags & parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] for wheel in package.get("wheels", ())
        )
    ]
    assert without == []
