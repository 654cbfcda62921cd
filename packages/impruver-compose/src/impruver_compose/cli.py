"""The command `impruver-compose`: its flags, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from impruver_core.cli.flags import CommonFlags, flag, from_recipe
from impruver_core.cli.runner import run_tool


@dataclass
class Flags(CommonFlags):
    """Turns the data sets of a recipe into tokenized, masked, deduplicated train and val JSONL."""

    train_path: Optional[str] = from_recipe("train_path")
    val_path: Optional[str] = from_recipe("val_path")
    seed: Optional[int] = from_recipe("seed")
    num_proc: Optional[int] = flag(int, None, help="processes that encode; left out: one for each core")
    show: Optional[int] = flag(int, None, help="print this many rows of each data set, text that is trained on marked")
    explain: Optional[str] = flag(
        str, None, help="print what the last run made of a row, <dataset_index>:<row>[:<part>], from 0"
    )


def program() -> int:
    """Runs the command in a process of its own, which needs no torch."""
    from impruver_compose.torch_guard import hide_torch

    hide_torch()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""

    def run(recipe, flags) -> None:
        from impruver_compose import pipeline

        if flags.explain is not None:
            pipeline.explain_row(recipe, flags.explain)
        elif flags.show is not None:
            pipeline.show_rows(recipe, flags.show)
        else:
            pipeline.compose(recipe, flags.dry_run, flags.overwrite, flags.num_proc)

    return run_tool("impruver-compose", Flags, run, argv)
