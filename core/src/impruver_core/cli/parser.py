"""The command line of a tool: argparse-dataclass with its traps closed."""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any, NoReturn

import argparse_dataclass

from impruver_core.cli.flags import parse_boolean
from impruver_core.cli.versions import format_version_line
from impruver_core.recipe.registry import load_installed_sections, suggest_key
from impruver_core.suggestions import suggest


class Parser(argparse_dataclass.ArgumentParser):
    """Parses a Flags dataclass: `--x` and `--x false`, dashes as underscores, --set, hints for misspelt flags.

    `overrides` holds the texts of --set after `parse`.
    """

    def __init__(self, flags_type: type, prog: str, description: str | None = None):
        self.overrides: list[str] = []
        super().__init__(
            flags_type,
            prog=prog,
            usage=f"{prog} --config RECIPE [--set KEY=VALUE] [flags]",
            description=description,
            allow_abbrev=False,
        )
        self.add_argument(
            "--set",
            action="append",
            metavar="KEY=VALUE",
            help="change a key of the recipe, as in --set trainer.learning_rate=2e-4; may be repeated, null removes",
        )
        self.add_argument(
            "--version", action="version", version=format_version_line(prog), help="print the version and leave"
        )

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """argparse's, with underscores in flags and booleans that take an optional true or false."""
        if kwargs.get("dest") is None and names[0].startswith("--"):
            kwargs["dest"] = names[0].removeprefix("--no-").lstrip("-").replace("-", "_")
        if kwargs.get("action") in ("store_true", "store_false") or kwargs.get("type") is parse_boolean:
            names = (f"--{kwargs['dest']}",)
            kwargs.pop("action", None)
            kwargs |= {"type": parse_boolean, "nargs": "?", "const": True, "metavar": "true|false"}
        names = tuple(name.replace("-", "_").replace("__", "--", 1) if name[:2] == "--" else name for name in names)
        return super().add_argument(*names, **kwargs)

    def parse(self, argv: Sequence[str]) -> Any:
        """The flags as their dataclass; exit 2 with one message for what can't be parsed."""
        namespace, unknown = argparse.ArgumentParser.parse_known_args(self, _folded(argv))
        self.overrides = vars(namespace).pop("set") or []
        if unknown:
            keys = [text for text in self.overrides if "=" not in text]
            self.error(f"--set {keys[0]}: expected KEY=VALUE, without blanks" if keys else self._about(unknown[0]))
        given = {name: value for name, value in vars(namespace).items() if value is not MISSING}
        return self._options_type(**given)

    def error(self, message: str) -> NoReturn:
        """One message, without the whole usage before it."""
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists the flags\n")

    def _about(self, unknown: str) -> str:
        name, _, value = unknown.partition("=")
        if not name.startswith("-"):
            return f"unexpected argument {unknown!r}; a recipe is given as --config {unknown}"
        bare = name.lstrip("-")
        meant = bare if "." in bare else suggest_key(bare, load_installed_sections())
        if meant:
            return f"unknown flag {name}; a key of the recipe is set by --set {meant}={value or 'VALUE'}"
        flags = [option.lstrip("-") for option in self._option_string_actions]
        return f"unknown flag {name}{suggest(bare, flags, form='; did you mean --{}?', list_valid=False)}"


def _folded(argv: Sequence[str]) -> list[str]:
    """`--train-path=a-b` as `--train_path=a-b`; values, and all that follows a lone `--`, stay as they are."""
    folded: list[str] = []
    for number, word in enumerate(argv):
        if word == "--":
            return folded + list(argv[number:])
        name, equals, value = word.partition("=")
        if word.startswith("--") and " " not in name:
            word = "--" + name[2:].replace("-", "_") + equals + value
        folded.append(word)
    return folded
