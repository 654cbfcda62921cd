"""Saving so that nothing is lost: each checkpoint gets its marker, and a signal brings one after the running step.

What a checkpoint holds makes a run that resumes from it equal, number for number, to one that was never stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_train.checkpointing import checkpoints
from impruver_train.checkpointing.resume import AlreadyTrainedError, ResumePoint
from impruver_train.distributed import wait_for_all
from impruver_train.signals import StopSignal, get_signal_of_any_rank, make_stop_exception

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

EPOCH_RANDOM = "epoch_random_{}.pth"  # torch's state where the epoch began: length grouping shuffles by it


class CheckpointCallback:
    """Callback that completes checkpoints.

    `identity` goes into each marker, `start` says what is resumed from. `asked`: whether the recipe asks for the save
    that is due, `late`: whether that waits for the epoch's end.
    """

    def __init__(self, output_dir: Path, signal: StopSignal, identity: dict[str, Any], start: ResumePoint) -> None:
        self.output_dir, self.signal, self.identity = output_dir, signal, identity
        self.limit, self.best, self.epoch_random = None, None, None
        self.asked = self.late = self.by_best = False
        self.stop, self.start, self.resumed = 0, start, start.checkpoint

    def on_train_begin(self, args, state, control, **_):
        self.limit = self.limit or args.save_total_limit
        args.save_total_limit = None  # ours comes after the marker
        if self.resumed is not None:
            args.eval_on_start = False  # it was, in the run that this one resumes
            state.compute_steps(args, state.max_steps)  # save_steps may have been changed
            if self.start.lost_best:
                state.best_model_checkpoint = state.best_metric = state.best_global_step = None
            if self.start.best is not None:  # Trainer forgets it where the folder was named otherwise
                state.best_model_checkpoint = str(self.start.best)
            if state.global_step >= state.max_steps:  # Trainer would take a step more
                raise AlreadyTrainedError
        self.signal.arm()

    def on_epoch_begin(self, args, state, control, **_):
        import torch

        if self.resumed is not None:
            random = self.resumed / EPOCH_RANDOM.format(args.process_index)
            if random.is_file():
                torch.set_rng_state(torch.load(random, weights_only=True))
            self.resumed = None
        self.epoch_random = torch.get_rng_state()

    def on_step_end(self, args, state, control, **_):
        ends = state.epoch == int(state.epoch) or control.should_training_stop
        self.asked, self.best = control.should_save, state.best_model_checkpoint
        self.stop = get_signal_of_any_rank(self.signal, args.device)
        if self.stop:
            control.should_save, args.save_only_model = True, False
            if args.save_strategy == "best":  # which would take the save back after an evaluation
                self.by_best, args.save_strategy = True, type(args.save_strategy)("steps")
        # An epoch's evaluation comes after its last step: it belongs into that step's checkpoint.
        self.late = control.should_save and ends and bool(self.stop or args.eval_strategy == "epoch")
        control.should_save = control.should_save and not self.late

    def on_epoch_end(self, args, state, control, **_):
        self.asked = self.asked or control.should_save
        control.should_save = control.should_save or self.late
        self.late = False

    def on_save(self, args, state, control, **_):
        import torch

        asked = state.best_global_step == state.global_step if self.by_best else self.asked or not self.stop
        folder = self.output_dir / f"checkpoint-{state.global_step}"
        torch.save(self.epoch_random, folder / EPOCH_RANDOM.format(args.process_index))
        wait_for_all()  # each process writes a part
        if state.is_world_process_zero:
            folder = self.complete(folder, args, state, asked)
        wait_for_all()
        self.stop = self.stop or (0 if args.save_only_model else get_signal_of_any_rank(self.signal, args.device))
        if self.stop:
            saved = f"saved after step {state.global_step} in {folder}"
            raise make_stop_exception(self.stop, saved, speaks=state.is_world_process_zero)

    def complete(self, folder: Path, args: TrainingArguments, state: TrainerState, asked: bool) -> Path:
        """Marks a checkpoint as complete, then removes those that it makes superfluous; returns where it is now."""
        if not asked:  # under a name of its own Trainer never takes it for the best one
            state.best_model_checkpoint = self.best
            state.save_to_json(str(folder / checkpoints.STATE))
            folder = folder.rename(self.output_dir / f"stopped-{state.global_step}")
        resumable = not args.save_only_model
        best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
        marker = {"step": state.global_step, "complete": resumable, "best": best}
        checkpoints.write_marker(folder, self.identity | marker)
        if resumable:
            checkpoints.remove_stopped_checkpoints(self.output_dir, but=folder)
        if asked:
            checkpoints.rotate_checkpoints(self.output_dir, self.limit, best)
        return folder

    def on_train_end(self, args, state, control, **_):
        # As Trainer does: of one checkpoint that may stay, it is the best.
        if self.limit == 1 and state.best_model_checkpoint and state.is_world_process_zero:
            best = Path(state.best_model_checkpoint).name
            for path in checkpoints.list_complete_checkpoints(self.output_dir):
                if path.name != best and path.name.startswith("checkpoint-"):
                    checkpoints.remove_checkpoint(path)
