"""The command `impruver-chat`: its flags, and nothing else."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from impruver_core.cli.flags import CommonFlags, flag, from_recipe
from impruver_core.cli.runner import run_tool
from impruver_core.errors import ImpruverError
from impruver_core.recipe.loading import SEEDS


def parse_seed(text: str) -> int:
    """Parse a seed; its range is checked here, since each section of the recipe that has one would report it again."""
    try:
        number = int(text)
    except ValueError:
        raise ArgumentTypeError(f"invalid seed value: {text!r}") from None
    if number not in SEEDS:
        raise ArgumentTypeError(f"expected {SEEDS[0]} to {SEEDS[-1]}, found {number}")
    return number


@dataclass
class Flags(CommonFlags):
    """Talks to a trained model at a terminal, or answers a JSONL of questions. --output_dir alone will do."""

    output_dir: Optional[str] = from_recipe("output_dir")
    gguf: Optional[str] = flag(str, None, help="answer with this GGUF file, through llama.cpp")
    input: Optional[str] = flag(str, None, help="JSONL of questions: rows with `messages` or `prompt`; - is stdin")
    output: Optional[str] = flag(str, None, help="JSONL of answers: rows whose messages end in the answer; - is stdout")
    plain: bool = flag(bool, False, help="show answers as they are, not as Markdown")
    compare: bool = flag(bool, False, help="answer with the adapter and without it; the model is loaded once")
    expect: bool = flag(bool, False, help="compare with each row's own last answer, or `reference`; print the share")
    strict: bool = flag(bool, False, help="stop at a row that can't be asked; else it becomes an error row")
    seed: Optional[int] = from_recipe("seed", type=parse_seed)
    system_prompt: Optional[str] = from_recipe("chat.system_prompt")
    history_limit: Optional[int] = from_recipe("chat.history_limit")
    batch_size: Optional[int] = from_recipe("chat.batch_size")
    max_new_tokens: Optional[int] = from_recipe("chat.max_new_tokens")
    repetition_penalty: Optional[float] = from_recipe("chat.repetition_penalty")
    do_sample: Optional[bool] = from_recipe("chat.do_sample")
    temperature: Optional[float] = from_recipe("chat.temperature")
    top_p: Optional[float] = from_recipe("chat.top_p")
    top_k: Optional[int] = from_recipe("chat.top_k")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""

    def work(recipe, flags) -> None:
        from impruver_chat.app import chat

        for name in ("input", "output", "gguf"):
            if getattr(flags, name) == "":
                raise ImpruverError(f"--{name} is empty: name a file")
        files = build_batch_job(flags)
        if files is not None and (flags.compare or flags.plain):
            raise ImpruverError("--compare and --plain are for a conversation, not for --input")
        chat(recipe, flags.gguf, files, flags.dry_run, flags.plain, flags.compare)

    return run_tool("impruver-chat", Flags, work, argv, config_from_output_dir=True)


def build_batch_job(flags: Flags) -> Any:
    """The files of questions and answers, None where there is a conversation to be had."""
    from impruver_chat.batch.job import BatchJob
    from impruver_chat.batch.questions import STDIN, has_rows_on_stdin

    given, output = flags.input, flags.output
    if given is None and not flags.dry_run and has_rows_on_stdin():
        given, output = "-", output or "-"
    if (given is None) != (output is None):
        raise ImpruverError("--input and --output go together (where JSONL comes through a pipe, neither is needed)")
    if given is None and (flags.expect or flags.strict):
        raise ImpruverError("--expect and --strict are for --input")
    if given is None:
        return None
    questions = STDIN if given == "-" else Path(given).expanduser()
    answers = None if output == "-" else Path(output).expanduser()
    return BatchJob(questions, answers, flags.strict, flags.expect, flags.overwrite)
