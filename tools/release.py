"""Releases one member: `uv run python tools/release.py MEMBER [--dry_run]`.

Checks, and tells all that is wrong at once: the top entry of its CHANGELOG.md is its version and says something, every
sibling that it requires (or that requires it) has a version within the bound that is written there, nothing in the tree
is uncommitted, the tag is free. Then builds every member without uv's sources, installs this one's wheel alone in an
empty environment and tries it (import, --help, --version), puts its wheel and sdist into dist/ and tags the commit
`<member>-v<version>`. `--dry_run` does all of it but tag. Uploading is left to you: the last line says how.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import check_wheels
from packaging.requirements import Requirement

ROOT = check_wheels.ROOT


def git(*words: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.rstrip()


def faults(name: str, members: dict[str, Path]) -> list[str]:
    """All that stands in the way of a release, without building anything."""
    projects = {member: check_wheels.project_of(folder) for member, folder in members.items()}
    return [
        *changelog_faults(members[name] / "CHANGELOG.md", projects[name]["version"]),
        *(fault for member in projects for fault in bound_faults(member, projects, name)),
        *tree_faults(tag_of(name, projects[name]["version"])),
    ]


def tag_of(name: str, version: str) -> str:
    """The tag of a release."""
    return f"{name}-v{version}"


def changelog_faults(path: Path, version: str) -> list[str]:
    """Is the top entry this version's, with a line to read?"""
    entries = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    title, _, text = (entries or [""])[0].partition("\n")
    if not re.fullmatch(rf"{re.escape(version)}( .*)?", title.strip()):
        return [
            f"{path.relative_to(ROOT)}: its top entry is {title.strip()!r}, the version {version}: name it after that"
        ]
    return [] if text.strip() else [f"{path.relative_to(ROOT)}: the entry of {version} says nothing"]


def bound_faults(member: str, projects: dict[str, dict], name: str) -> list[str]:
    """Requirements between `member` and a sibling, one of both `name`, that its version is not within."""
    project, found = projects[member], []
    extras = project.get("optional-dependencies", {}).values()
    for text in [*project.get("dependencies", ()), *(each for extra in extras for each in extra)]:
        needed = Requirement(text)
        if needed.name not in projects or needed.name == member or name not in (member, needed.name):
            continue
        version = projects[needed.name]["version"]
        if {bound.operator for bound in needed.specifier} != {">=", "<"}:
            found.append(f"{member} requires {text}: write both bounds, as in {needed.name}>=0.1,<0.2")
        elif not needed.specifier.contains(version):
            found.append(f"{member} requires {text}, and {needed.name} is {version}")
    return found


def tree_faults(tag: str) -> list[str]:
    """Is all committed, and the tag free?"""
    changed = git("status", "--porcelain").splitlines()
    told = [f"not committed: {', '.join(line[3:] for line in changed[:3])}"] if changed else []
    return [*told, *([f"the tag {tag} is there already"] if git("tag", "--list", tag) else [])]


def release(name: str, folder: Path, dry_run: bool) -> None:
    """Builds, tries, tags."""
    version = check_wheels.project_of(folder)["version"]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        check_wheels.build(place / "wheels")
        print(check_wheels.check(name, folder, place / "wheels", place))
        made = sorted((place / "wheels").glob(f"{name.replace('-', '_')}-{version}*"))
        if dry_run:
            print(f"would tag {tag_of(name, version)}; {', '.join(path.name for path in made)} would go into dist/")
            return
        (ROOT / "dist").mkdir(exist_ok=True)
        for path in made:
            shutil.copy2(path, ROOT / "dist" / path.name)
    tag = tag_of(name, version)
    git("tag", "--annotate", tag, "--message", f"{name} {version}")
    files = " ".join(f"dist/{path.name}" for path in made)
    print(f"tagged {tag}; next: git push origin {tag} && uv publish {files}")


def main() -> int:
    """Releases a member; 2 where something is to be put right first."""
    members = check_wheels.members()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("member", choices=members)
    parser.add_argument("--dry_run", action="store_true", help="do all but tag")
    given = parser.parse_args()
    found = faults(given.member, members)
    if found:
        print(f"{given.member} can't be released:", *found, sep="\n  ", file=sys.stderr)
        return 2
    release(given.member, members[given.member], given.dry_run)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
