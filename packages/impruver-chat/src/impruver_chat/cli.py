"""The command `impruver-chat`: its flags, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from impruver_core.cli.flags import CommonFlags, flag, from_recipe
from impruver_core.cli.tool import run_tool
from impruver_core.errors import ImpruverError


@dataclass
class Flags(CommonFlags):
    """Talks to a trained model at a terminal, or answers a JSONL of questions. --output_dir alone will do."""

    output_dir: Optional[str] = from_recipe("output_dir")
    gguf: Optional[str] = flag(str, None, help="answer with this GGUF file, through llama.cpp")
    input: Optional[str] = flag(str, None, help="JSONL of questions: rows with `messages` or `prompt`")
    output: Optional[str] = flag(str, None, help="JSONL of answers: the rows of --input, messages ending in the answer")
    expect: bool = flag(bool, False, help="compare with each row's own last answer, or `reference`; print the share")
    strict: bool = flag(bool, False, help="stop at a row that can't be asked; else it becomes an error row")
    seed: Optional[int] = from_recipe("seed")
    system_prompt: Optional[str] = from_recipe("chat.system_prompt")
    history_limit: Optional[int] = from_recipe("chat.history_limit")
    max_new_tokens: Optional[int] = from_recipe("chat.max_new_tokens")
    repetition_penalty: Optional[float] = from_recipe("chat.repetition_penalty")
    do_sample: Optional[bool] = from_recipe("chat.do_sample")
    temperature: Optional[float] = from_recipe("chat.temperature")
    top_p: Optional[float] = from_recipe("chat.top_p")
    top_k: Optional[int] = from_recipe("chat.top_k")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""

    def work(recipe, flags) -> None:
        from impruver_chat.chat import Files, chat

        if bool(flags.input) != bool(flags.output):
            raise ImpruverError("--input and --output go together")
        if not flags.input and (flags.expect or flags.strict):
            raise ImpruverError("--expect and --strict are for --input")
        files = None
        if flags.input:
            paths = [Path(path).expanduser() for path in (flags.input, flags.output)]
            files = Files(*paths, strict=flags.strict, expect=flags.expect, overwrite=flags.overwrite)
        chat(recipe, flags.gguf, files, flags.dry_run)

    return run_tool("impruver-chat", Flags, work, argv, config_from_output_dir=True)
