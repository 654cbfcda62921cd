"""The command line of a tool: flags of its own, flags of the recipe, what is misspelt."""

# ruff: noqa: RUF009, UP045  (a default list is copied; Optional is what cli.py files use)
import re
from dataclasses import dataclass
from typing import Literal, Optional

import pytest
from impruver_core.cli.flags import CommonFlags, Parser, flag, from_recipe, list_recipe_flags


@dataclass
class Flags(CommonFlags):
    """Does 100% of it."""

    train_path: Optional[str] = from_recipe("train_path")
    seed: Optional[int] = from_recipe("seed")
    dtype: Optional[str] = from_recipe("model.dtype")
    load_in_4bit: Optional[bool] = from_recipe("model.load_in_4bit")
    chat_template_kwargs: Optional[dict] = from_recipe("tokenizer.chat_template_kwargs")
    enable_thinking: Optional[bool] = from_recipe("tokenizer.chat_template_kwargs.enable_thinking", "think", type=bool)
    report_to: Optional[str] = from_recipe("trainer.report_to", "where to report")
    show: int = flag(int, 3, help="show 50% of the rows")
    ratio: float = flag(float, 0.5, help="a share")
    color: bool = flag(bool, True, help="with colours")
    levels: list[str] = flag(str, ["q8_0"], nargs="*", help="levels")
    mode: str = flag(str, "a", choices=("a", "b"), help="which")
    kind: "Literal['x', 'y'] | None" = flag(str, None, choices=("x", "y"), help="which kind")


def parse(*argv):
    parser = Parser(Flags, "impruver-test")
    return parser.parse(argv), parser.overrides


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_nothing_given():
    flags, overrides = parse()
    assert flags == Flags()
    assert (flags.config, flags.dry_run, flags.show, flags.color, flags.levels) == (None, False, 3, True, ["q8_0"])
    assert (flags.seed, flags.dtype, flags.load_in_4bit) == (None, None, None)
    assert overrides == []
    assert list_recipe_flags(flags) == []


def test_types():
    flags, _ = parse("--seed", "5", "--ratio", "5e-6", "--levels", "a", "b", "--mode", "b", "--kind=x", "--show=-5")
    assert (flags.seed, flags.ratio, flags.levels, flags.mode, flags.kind, flags.show) == (
        5,
        5e-6,
        ["a", "b"],
        "b",
        "x",
        -5,
    )


@pytest.mark.parametrize(
    ("words", "value"), [((), True), (("true",), True), (("false",), False), (("no",), False), (("True",), True)]
)
def test_booleans_with_and_without_a_value(words, value):
    flags, _ = parse("--load_in_4bit", *words, "--color", *words, "--dry_run", *words)
    assert (flags.load_in_4bit, flags.color, flags.dry_run) == (value, value, value)


def test_a_boolean_before_another_flag():
    flags, _ = parse("--dry_run", "--color=false", "--quiet")
    assert (flags.dry_run, flags.color, flags.quiet) == (True, False, True)


def test_dashes_are_underscores_in_names_and_stay_in_values():
    assert parse("--train-path", "a-b", "--dry-run")[0].train_path == "a-b"
    assert parse("--train-path=./a-b=--c-d")[0].train_path == "./a-b=--c-d"
    assert parse("--set", "trainer.run-name=a-b")[1] == ["trainer.run-name=a-b"]
    assert parse("--train_path", "- a-b -")[0].train_path == "- a-b -"


def test_set_may_be_repeated():
    assert parse("--set", "a.b=1", "--set=c=d=e")[1] == ["a.b=1", "c=d=e"]


def test_named_flags_know_their_place_in_the_recipe():
    flags, _ = parse("--seed", "0", "--dtype", "fp32", "--load-in-4bit=false", "--report_to", "none", "--show", "1")
    assert list_recipe_flags(flags) == [
        ("seed", 0, "--seed"),
        ("model.dtype", "fp32", "--dtype"),
        ("model.load_in_4bit", False, "--load_in_4bit"),
        ("trainer.report_to", "none", "--report_to"),
    ]
    flags, _ = parse("--chat_template_kwargs", "{date_string: 10:30}", "--enable_thinking", "false")
    assert list_recipe_flags(flags) == [
        ("tokenizer.chat_template_kwargs", {"date_string": "10:30"}, "--chat_template_kwargs"),
        ("tokenizer.chat_template_kwargs.enable_thinking", False, "--enable_thinking"),
    ]


def test_help_shows_defaults_and_percent_signs(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "show 50% of the rows (default: 3)" in told
    assert "with colours (default: true)" in told
    assert "seed of every random choice (default: the recipe's seed, else 42)" in told
    assert "--dtype {auto,bf16,fp16,fp32} what is computed in (default: the recipe's model.dtype, else auto)" in told
    assert "where to report (default: the recipe's trainer.report_to)" in told
    assert "MISSING" not in told


def test_version_names_program_and_packages(capsys):
    with pytest.raises(SystemExit) as caught:
        Parser(Flags, "impruver-core").parse(["--version"])
    assert caught.value.code == 0
    assert re.match(r"impruver-core \d+\.\d+\.\d+ \(impruver-core \d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--confg", "x"], "unknown flag --confg; did you mean --config?"),
        (["--dryrun"], "unknown flag --dryrun; did you mean --dry_run?"),
        (["--conf", "x"], "did you mean --config?"),
        (["--trainer.optim", "x"], "a key of the recipe is set by --set trainer.optim="),
        (["--trainer.run-name=a-b"], "by --set trainer.run_name=a-b"),
        (["recipe.yaml"], "a recipe is given as --config recipe.yaml"),
        (["--seed", "x"], "--seed: expected a whole number, got 'x'"),
        (["--seed"], "--seed: expected one argument"),
        (["--dtype", "bf15"], "--dtype: invalid choice: 'bf15'"),
        (["--mode", "c"], "--mode: invalid choice"),
        (["--dry_run", "maybe"], "expected true or false, got 'maybe'"),
        (["--set"], "--set: expected one argument"),
        (["--chat_template_kwargs", "{"], "expected YAML"),
    ],
)
def test_what_is_refused(capsys, argv, what):
    told = refused(capsys, *argv)
    assert told.startswith("impruver-test: error: ")
    assert what in told
    assert len(told.splitlines()) == 2


def test_unknown_paths_are_a_fault_of_ours():
    with pytest.raises(KeyError):
        from_recipe("model.nam")
    with pytest.raises(KeyError):
        from_recipe("nonsense")


def test_a_recipes_list_as_several_words():
    @dataclass
    class Lists(CommonFlags):
        """Takes a list."""

        names: Optional[list] = from_recipe("tokenizer.name", type=str, nargs="*")

    parser = Parser(Lists, "impruver-test")
    assert list_recipe_flags(parser.parse(["--names", "a", "b"])) == [("tokenizer.name", ["a", "b"], "--names")]
    assert list_recipe_flags(parser.parse(["--names"])) == [("tokenizer.name", [], "--names")]
    assert list_recipe_flags(parser.parse([])) == []
