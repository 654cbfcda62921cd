"""The command `impruver-train`: its flags, and nothing else."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from impruver_core.cli.flags import CommonFlags, flag, from_recipe
from impruver_core.cli.runner import run_tool

from impruver_train.distributed import exit_worker, only_rank_zero_logs


@dataclass
class Flags(CommonFlags):
    """Trains a language model on token rows, as a recipe says: LoRA, 4- and 8-bit LoRA, full, from scratch."""

    train_path: Optional[str] = from_recipe("train_path")
    val_path: Optional[str] = from_recipe("val_path")
    output_dir: Optional[str] = from_recipe("output_dir")
    seed: Optional[int] = from_recipe("seed")
    report_to: Optional[str] = from_recipe(
        "trainer.report_to", "where to report: none, all, or a tracker that transformers has, as wandb, tensorboard"
    )
    trial_steps: int = flag(int, 0, help="time this many steps and their memory, tell the whole run, write nothing")
    imatrix_only: bool = flag(
        bool, False, help="train nothing: collect the importance matrix of the finished model in output_dir"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""

    def work(recipe, flags) -> None:
        from impruver_train.run import train

        with only_rank_zero_logs():
            train(recipe, flags.dry_run, flags.overwrite, flags.trial_steps, flags.imatrix_only)

    code = run_tool("impruver-train", Flags, work, argv)
    trackers = sys.modules.get("impruver_train.training.callbacks.trackers")
    if argv is None and trackers is not None:  # this process ends now
        trackers.limit_exit(code)
    return exit_worker(code)
