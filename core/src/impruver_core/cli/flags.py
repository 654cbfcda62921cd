"""Flags of a tool: the fields of one flat dataclass, and the command line that argparse-dataclass makes of them.

    @dataclass
    class Flags(CommonFlags):
        train_path: Optional[str] = from_recipe("train_path")        # not given: None; goes into the recipe
        show: int = flag(int, 0, help="print this many rows")        # the tool's own, never in the recipe

`flag` and `from_recipe` always set `type`: argparse-dataclass' own inference fails silently on Optional and Literal.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, NoReturn

import argparse_dataclass

from impruver_core.cli.console import make_visible
from impruver_core.io.json_schema import describe_type
from impruver_core.recipe.registry import find_key, load_installed_sections, suggest_key
from impruver_core.recipe.schema import OLD_BOOLEANS, RecipeFlag
from impruver_core.suggestions import suggest
from impruver_core.system import get_installed_version

CORE = "impruver-core"


def flag(type: Any, default: Any, *, choices: Collection | None = None, nargs: Any = None, help: str) -> Any:
    """A flag of the tool's own. `nargs` as argparse has it; a list as default is copied."""
    if not (default is None or default is MISSING or default == []):
        help = f"{help} (default: {_format_default(default)})"
    metadata = {"type": _get_converter(type), "choices": choices, "nargs": nargs, "help": help.replace("%", "%%")}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def from_recipe(path: str, help: str | None = None, *, type: Any = None, nargs: Any = None) -> Any:
    """A flag for a key of the recipe: type, help and shown default are its section's; not given it is None.

    Keys inside an open mapping (`trainer.report_to`) are declared nowhere: give `help`, and `type` unless it is text.
    `nargs` makes a list of several words, each of `type`.
    """
    declared = find_key(path)
    default = "" if declared.default is None else f", else {_format_default(declared.default)}"
    metadata = {
        "path": path,
        "type": _get_converter(type or _strip_none(declared.type)),
        "choices": declared.choices,
        "nargs": nargs,
        "help": f"{help or declared.help} (default: the recipe's {path}{default})".replace("%", "%%"),
    }
    return dataclasses.field(default=None, metadata=metadata)


def list_recipe_flags(flags: Any) -> list[RecipeFlag]:
    """What the flags put into the recipe: one for each `from_recipe` field that is set."""
    return [
        RecipeFlag(field.metadata["path"], getattr(flags, field.name), f"--{field.name}")
        for field in dataclasses.fields(flags)
        if "path" in field.metadata and getattr(flags, field.name) is not None
    ]


def parse_boolean(text: str) -> bool:
    """`true` or `false`, in any of YAML's words."""
    try:
        return OLD_BOOLEANS[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}") from None


def _parse_mapping(text: str) -> Any:
    """A list or mapping, given as YAML."""
    from impruver_core.recipe.yaml_document import Document, parse_text

    document = Document("")
    parse_text(text, document)
    if document.faults:
        raise argparse.ArgumentTypeError(f"expected YAML, got {text!r}")
    return document.data


def _strip_none(hint: Any) -> Any:
    """`int | None` as int; text where a key is declared nowhere."""
    arms = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
    return str if hint is None else arms[0] if typing.get_origin(hint) in (typing.Union, types.UnionType) else hint


def _get_converter(type: Any) -> Any:
    base = typing.get_origin(type) or type
    parsers = {bool: parse_boolean, list: _parse_mapping, dict: _parse_mapping}
    return _make_number_parser(base) if base in (int, float) else parsers.get(base, type)


def _make_number_parser(kind: Callable) -> Callable:
    def parse_number(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {describe_type(kind)}, got {text!r}") from None

    return parse_number


def _format_default(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass
class CommonFlags:
    """Flags that every tool has; --set, --version and --help are the Parser's."""

    config: str | None = flag(str, None, help="recipe: a YAML file, or a name that `impruver ls` lists")
    dry_run: bool = flag(bool, False, help="check everything that needs no weights, count and estimate, write nothing")
    overwrite: bool = flag(bool, False, help="start anew: replace outputs that this tool would refuse to replace")
    quiet: bool = flag(bool, False, help="results, warnings and errors only")


@dataclass
class FolderFlags(CommonFlags):
    """Flags of a tool that the recipe.yaml in --output_dir will do for: it may have come with the folder."""

    trust_remote_code: bool = flag(
        bool, False, help="without --config: let the recipe.yaml in --output_dir run code that came with the folder"
    )


class Parser(argparse_dataclass.ArgumentParser):
    """Parses a Flags dataclass: `--x` and `--x false`, dashes as underscores, --set, hints for misspelt flags.

    `overrides` holds the texts of --set after `parse`.
    """

    def __init__(self, flags_type: type, prog: str, description: str | None = None):
        self.overrides: list[str] = []
        usage = f"{prog} --config RECIPE [--set KEY=VALUE] [flags]"
        super().__init__(flags_type, prog=prog, usage=usage, description=description, allow_abbrev=False)
        set_help = "change a key of the recipe, as in --set trainer.learning_rate=2e-4; may be repeated, null removes"
        self.add_argument("--set", action="append", metavar="KEY=VALUE", help=set_help)
        version = format_version_line(prog)
        self.add_argument("--version", action="version", version=version, help="print the version and leave")

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
        namespace, unknown = argparse.ArgumentParser.parse_known_args(self, _fold_dashes(argv))
        self.overrides = vars(namespace).pop("set") or []
        if unknown:
            keys = [text for text in self.overrides if "=" not in text]
            self.error(
                f"--set {keys[0]}: expected KEY=VALUE, without blanks" if keys else self._describe_unknown(unknown[0])
            )
        return self._options_type(**{name: value for name, value in vars(namespace).items() if value is not MISSING})

    def error(self, message: str) -> NoReturn:
        """One message, without the whole usage before it."""
        self.exit(2, make_visible(f"{self.prog}: error: {message}\n{self.prog} --help lists the flags\n"))

    def _describe_unknown(self, unknown: str) -> str:
        name, _, value = unknown.partition("=")
        if not name.startswith("-"):
            return f"unexpected argument {unknown!r}; a recipe is given as --config {unknown}"
        bare = name.lstrip("-")
        key = bare if "." in bare else suggest_key(bare, load_installed_sections())
        if key:
            return f"unknown flag {name}; a key of the recipe is set by --set {key}={value or 'VALUE'}"
        flags = [option.lstrip("-") for option in self._option_string_actions]
        return f"unknown flag {name}{suggest(bare, flags, form='; did you mean --{}?', list_valid=False)}"


def format_version_line(program: str) -> str:
    """`impruver-train 0.1.0 (impruver-core 0.1.0)`."""
    core, own = get_installed_version(CORE), get_installed_version(program)
    return f"{program} {own} ({CORE} {core})" if own else f"{program} {core} ({CORE})"


def _fold_dashes(argv: Sequence[str]) -> list[str]:
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
