"""tools/release.py on a repository of its own: a real release, and each refusal."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


class Clone:
    """A repository with this working tree's files, where core's changelog is ready for its version."""

    def __init__(self, folder: Path):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        for name in listed.stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.git("init", "-q")
        self.edit("core/CHANGELOG.md", "## Unreleased", "## 0.1.0 (a day)")

    def git(self, *words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *identity, *words], cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout

    def edit(self, name: str, old: str, new: str, commit: bool = True) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        if commit:
            self.git("add", "-A")
            self.git("commit", "-qm", "edited")

    def release(self, *words: str) -> subprocess.CompletedProcess:
        for name in ("user.name", "user.email"):
            self.git("config", name, "a@b")
        command = [sys.executable, self.folder / "tools/release.py", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git repository")
    return Clone(tmp_path)


def test_a_member_is_released(clone):
    tried = clone.release("impruver-core", "--dry_run")
    assert tried.returncode == 0, tried.stderr
    assert "impruver-core 0.1.0: installed alone" in tried.stdout
    assert "would tag impruver-core-v0.1.0" in tried.stdout
    assert clone.git("tag") == ""
    assert not (clone.folder / "dist").exists()
    done = clone.release("impruver-core")
    assert done.returncode == 0, done.stderr
    assert clone.git("tag").split() == ["impruver-core-v0.1.0"]
    made = {path.name for path in (clone.folder / "dist").iterdir()}
    assert made == {"impruver_core-0.1.0-py3-none-any.whl", "impruver_core-0.1.0.tar.gz"}
    assert clone.git("status", "--porcelain") == ""
    again = clone.release("impruver-core")
    assert again.returncode == 2
    assert "the tag impruver-core-v0.1.0 is there already" in again.stderr


REFUSED = {
    "the changelog is of no version": (
        ("core/CHANGELOG.md", "## 0.1.0 (a day)", "## Unreleased"),
        "core/CHANGELOG.md: its top entry is 'Unreleased', the version 0.1.0",
    ),
    "the changelog is of another version": (
        ("core/CHANGELOG.md", "## 0.1.0 (a day)", "## 0.1.01"),
        "core/CHANGELOG.md: its top entry is '0.1.01', the version 0.1.0",
    ),
    "the entry is empty": (
        ("core/CHANGELOG.md", "## 0.1.0 (a day)", "## 0.1.0\n\n## 0.0.9"),
        "core/CHANGELOG.md: the entry of 0.1.0 says nothing",
    ),
    "what it requires is beyond the bound": (
        ("configs/pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"'),
        "impruver-core requires impruver-configs>=0.1,<0.2, and impruver-configs is 0.2.0",
    ),
    "what requires it has another bound": (
        ("packages/impruver-gguf/pyproject.toml", "impruver-core>=0.1,<0.2", "impruver-core>=0.2,<0.3"),
        "impruver-gguf requires impruver-core>=0.2,<0.3, and impruver-core is 0.1.0",
    ),
    "a bound is missing": (
        ("core/pyproject.toml", "impruver-configs>=0.1,<0.2", "impruver-configs>=0.1"),
        "impruver-core requires impruver-configs>=0.1: write both bounds",
    ),
    "work is not committed": (("README.md", "Impruver", "Impruver!", False), "not committed: README.md"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(clone, case):
    edit, message = REFUSED[case]
    clone.edit(*edit)
    done = clone.release("impruver-core")
    assert done.returncode == 2
    assert message in done.stderr
    assert clone.git("tag") == ""


def test_all_faults_are_named_and_a_failing_wheel_is_not_tagged(clone):
    clone.edit("core/CHANGELOG.md", "## 0.1.0 (a day)", "## Unreleased")
    clone.edit("README.md", "Impruver", "Impruver!", commit=False)
    done = clone.release("impruver-core")
    assert re.search(r"its top entry is.*\n  not committed: README.md", done.stderr)
    clone.git("checkout", "-q", "README.md")
    clone.edit("core/CHANGELOG.md", "## Unreleased", "## 0.1.0")
    clone.edit(
        "core/pyproject.toml", 'impruver = "impruver_core.commands.main:main"', 'impruver = "impruver_core.gone:main"'
    )
    done = clone.release("impruver-core")
    assert done.returncode == 1
    assert "impruver_core.gone" in done.stderr
    assert clone.git("tag") == ""
