"""The command `impruver-chat`: its flags, and nothing else."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from impruver_core.cli.flags import FolderFlags, flag, from_recipe
from impruver_core.cli.runner import run_tool
from impruver_core.errors import ImpruverError
from impruver_core.recipe.loading import SEEDS, Recipe

if TYPE_CHECKING:
    from impruver_chat.batch.job import BatchJob


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
class Flags(FolderFlags):
    """Talks to a model at a terminal, or answers a JSONL of questions. --output_dir or --gguf alone will do."""

    output_dir: Optional[str] = from_recipe("output_dir")
    gguf: Optional[str] = flag(str, None, help="answer with this GGUF file, through llama.cpp; it needs no recipe")
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
    """Run the command; the exit code."""

    def work(recipe: Recipe, flags: Flags) -> None:
        from impruver_chat.app import chat

        for name in ("input", "output", "gguf"):
            if getattr(flags, name) == "":
                raise ImpruverError(f"--{name} is empty: name a file")
        job = build_batch_job(recipe, flags)
        if job is not None and (flags.compare or flags.plain):
            raise ImpruverError("--compare and --plain are for a conversation, not for --input")
        chat(recipe, flags.gguf, job, flags.dry_run, flags.plain, flags.compare)

    options = {"config_from_output_dir": True, "works_without_recipe": names_model}
    return run_tool("impruver-chat", Flags, work, argv, **options)


def names_model(flags: Flags) -> bool:
    """Whether flags name a model that needs no recipe: a GGUF file, or a folder with a model.

    ImpruverError for a folder with neither a model nor a recipe.
    """
    if flags.gguf is not None or flags.config is not None:
        return True
    if flags.output_dir is None:
        recipe = "a recipe's file, or a name that `impruver ls` lists"
        raise ImpruverError(
            f"--config is missing: give {recipe}; --output_dir FOLDER or --gguf FILE of a model will do"
        )
    folder = Path(flags.output_dir).expanduser()
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return True
    if not (folder / "recipe.yaml").is_file():
        names = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) if folder.is_dir() else ""
        hint = f"name a GGUF file in it with --gguf ({names})" if names else "name the folder of a model, or a --config"
        if not folder.exists():
            raise ImpruverError(f"--output_dir: {folder} is not there: {hint}")
        needed = "config.json or adapter_config.json"
        raise ImpruverError(f"--output_dir: {folder} holds neither recipe.yaml nor a model ({needed}): {hint}")
    return False


def build_batch_job(recipe: Recipe, flags: Flags) -> "BatchJob | None":
    """Build the job of answering a file of questions; None for a conversation."""
    from impruver_chat.batch.job import BatchJob
    from impruver_chat.batch.rows import STDIN, has_rows_on_stdin

    questions, answers = flags.input, flags.output
    if questions is None and not flags.dry_run and has_rows_on_stdin():
        questions, answers = "-", answers or "-"
    if (questions is None) != (answers is None):
        raise ImpruverError("--input and --output go together (where JSONL comes through a pipe, neither is needed)")
    if questions is None and (flags.expect or flags.strict):
        raise ImpruverError("--expect and --strict are for --input")
    if questions is None:
        return None
    source = STDIN if questions == "-" else Path(questions).expanduser()
    target, chat = None if answers == "-" else Path(answers).expanduser(), recipe.chat
    return BatchJob(
        source, target, flags.strict, flags.expect, flags.overwrite, chat.system_prompt, chat.batch_size, recipe.seed
    )
