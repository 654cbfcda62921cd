"""Rewrites what the documentation takes from the code: `uv run python tools/write_docs.py [--check]`.

In every Markdown file of the repository, what stands between `<!-- made: … -->` and `<!-- /made -->` is made anew:

- `<!-- made: impruver-train --help -->`: what this command prints, 100 columns wide;
- `<!-- made: keys of chat gguf -->`: the keys of these sections of a recipe, from their declarations;
- `<!-- made: keys of all -->`: those of all sections, a heading each.

`--check` writes nothing; where a block is not what the code says, it names the file and exits with 1.
"""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from impruver_core.io.json_schema import TYPE_WORDS
from impruver_core.recipe.registry import load_installed_sections
from impruver_core.recipe.schema import ListOf, OpenMapping, Scalar, get_yaml_name
from impruver_core.recipe.sections import OWNERS

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?<=<!-- made: )(?P<what>[^>]+)(?P<open> -->\n)(?P<made>.*?)(?P<close><!-- /made -->)", re.DOTALL)
HEAD = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"


def printed(command: str) -> str:
    """What a command of this environment prints, as a code block."""
    program, *words = command.split()
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *words], env=environment, capture_output=True, text=True, check=True
    )
    lines = (line.rstrip() for line in done.stdout.strip().splitlines())
    return "```text\n" + "\n".join(lines) + "\n```\n"


def keys(names: list[str]) -> str:
    """Tables of the keys of these sections: single values first, in one table."""
    specs = load_installed_sections()
    single = [name for name in names if isinstance(specs[name], Scalar)]
    parts = [HEAD + "".join(_row(name, specs[name]) for name in single)] if single else []
    return "\n".join([*parts, *(f"`{name}`: {_section(name, specs[name])}" for name in names if name not in single)])


def all_keys() -> str:
    """The keys of a recipe, a heading for each section with the tool that reads it."""
    single = [name for name in OWNERS if isinstance(load_installed_sections()[name], Scalar)]
    parts = ["\n## Where things go\n\n" + keys(single)]
    for name in OWNERS:
        if name not in single:
            owner = "every tool" if OWNERS[name] == "impruver-core" else OWNERS[name]
            parts.append(f"## `{name}`\n\nRead by {owner}. {_section(name, load_installed_sections()[name])}")
    return "\n".join(parts) + "\n"


def _section(name: str, spec: Any) -> str:
    if isinstance(spec, OpenMapping):
        return f"{spec.help[0].upper()}{spec.help[1:]}.\n"
    section, what = (spec.section, f"A list: {spec.help}. ") if isinstance(spec, ListOf) else (spec, "")
    prefix = f"{name}[]." if isinstance(spec, ListOf) else f"{name}."
    told = what + " ".join((section.__doc__ or "").split())
    return f"{told}\n\n{HEAD}{''.join(_rows(prefix, section))}"


def _rows(prefix: str, section: type) -> typing.Iterator[str]:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        path = prefix + get_yaml_name(field)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _rows(f"{path}.", hints[field.name])
            continue
        missing = field.default is dataclasses.MISSING
        made = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        required = missing and made is None
        default = "required" if required else _value(made if missing else field.default)
        yield _cells(path, _type(hints[field.name], field.metadata["choices"]), default, field.metadata["help"])


def _row(name: str, spec: Scalar) -> str:
    return _cells(name, _type(spec.type, spec.choices), _value(spec.default), spec.help)


def _cells(path: str, *cells: str) -> str:
    shown = " | ".join(re.sub(r"([|<])", r"\\\1", cell) for cell in cells)
    return f"| `{path.partition('.')[2] or path}` | {shown} |\n"


def _type(hint: Any, choices: Any) -> str:
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    arms = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
    return " or ".join(_one_type(arm) for arm in arms)


def _one_type(hint: Any) -> str:
    words = TYPE_WORDS[typing.get_origin(hint) or hint].removeprefix("a ")
    inner = typing.get_args(hint)
    return f"{words} of {_one_type(inner[-1])}" if inner else words


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def made_anew(text: str) -> str:
    """A file's text with each of its blocks as the code has it now."""

    def block(found: re.Match) -> str:
        what = found["what"]
        if what == "keys of all":
            made = all_keys()
        elif what.startswith("keys of "):
            made = keys(what.removeprefix("keys of ").split())
        else:
            made = printed(what)
        return f"{what}{found['open']}{made}{found['close']}"

    return BLOCK.sub(block, text)


def pages() -> list[Path]:
    """The repository's Markdown files."""
    names = ("*.md", "docs/*.md", "core/*.md", "configs/*.md", "packages/*/*.md")
    return sorted(path for name in names for path in ROOT.glob(name))


def main(argv: list[str] | None = None) -> int:
    """Rewrites or checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, tell what is out of date")
    check = parser.parse_args(argv).check
    old = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        new = made_anew(text)
        if new != text:
            old.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and old:
        print(f"{', '.join(old)}: not as the code says; run `uv run python tools/write_docs.py`")
    elif old:
        print(f"rewrote {', '.join(old)}")
    return int(check and bool(old))


if __name__ == "__main__":
    raise SystemExit(main())
