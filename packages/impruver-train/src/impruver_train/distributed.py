"""Several processes of one run: the first one logs and writes, all stop and exit together, weights are gathered."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.cli.console import log_info, set_mute
from impruver_core.cli.runner import STOPPED_BY_KEYBOARD, STOPPED_BY_SIGNAL, TerminationSignal
from impruver_core.errors import ImpruverError

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

WAITS = 10.0  # seconds in which a launcher ends the others once the first has said what happened
GATHERS = "stage3_gather_16bit_weights_on_model_save"


def is_first_on_machine() -> bool:
    """Whether this process is the first of its run here, or the only one."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


@contextmanager
def only_rank_zero_logs() -> Iterator[None]:
    """Has only the first process on each machine speak.

    What ends the others ends it too, as a rule: they leave the message to it, and print their own when nobody ended
    them for that.
    """
    if "LOCAL_RANK" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch is not imported yet; its warnings are no user's
    if is_first_on_machine():
        yield
        return
    set_mute(True)
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal) as stop:
        raise SystemExit(STOPPED_BY_SIGNAL if isinstance(stop, TerminationSignal) else STOPPED_BY_KEYBOARD) from None
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(WAITS)
        raise
    finally:
        set_mute(False)


def exit_worker(code: int) -> int:
    """Returns the exit code; a process that a launcher started ends here.

    Threads of torch's process groups can abort a process that winds down (SIGABRT), and the launcher would take a run
    whose work is done for a failed one.
    """
    if "LOCAL_RANK" in os.environ and "torch" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def is_distributed() -> bool:
    """Whether several processes have joined a process group."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def wait_for_all() -> None:
    """Waits until all processes have come here; returns at once for one alone."""
    from torch import distributed

    if is_distributed():
        distributed.barrier()


def destroy_process_group() -> None:
    """Ends the process group, all processes together: one that just left would take the writer along."""
    from torch import distributed

    if is_distributed():
        distributed.barrier()
        distributed.destroy_process_group()


def uses_fsdp(arguments: TrainingArguments) -> bool:
    """Whether the recipe or accelerate's own configuration asks for FSDP."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def get_zero_stage(arguments: TrainingArguments) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
    config = getattr(arguments, "hf_deepspeed_config", None)
    return int(config.get_value("zero_optimization.stage") or 0) if config is not None else 0


def check_sharding(arguments: TrainingArguments, trains_token_rows: bool, dry_run: bool) -> None:
    """ImpruverError for what FSDP or DeepSpeed would not do as asked; in a dry run a note that it wants processes.

    `trains_token_rows`: an adapter trains rows of the embeddings.
    """
    if get_zero_stage(arguments) == 3:
        _check_zero3(arguments.hf_deepspeed_config, trains_token_rows)
    if not uses_fsdp(arguments):
        return
    if arguments.device.type == "cpu":
        raise ImpruverError(
            "trainer.fsdp: accelerate shards models over GPUs only (over CPUs each process would hold a whole copy, "
            "unsaid); leave it out"
        )
    if arguments.world_size == 1:
        advice = "trainer.fsdp shards the model over several processes: impruver run --nproc_per_node N finetune …"
        if not dry_run:
            raise ImpruverError(f"{advice}; this is one. Start it so, or leave trainer.fsdp out")
        log_info(f"note: {advice}")


def _check_zero3(config: Any, trains_token_rows: bool) -> None:
    """ImpruverError where ZeRO 3 would fail while it loads or saves."""
    if not config.get_value(f"zero_optimization.{GATHERS}"):
        raise ImpruverError(
            f"trainer.deepspeed: ZeRO 3 leaves no process with whole weights to save; set {GATHERS}: true in its "
            "zero_optimization"
        )
    if trains_token_rows:
        raise ImpruverError(
            "trainer.deepspeed: peft can't train rows of embeddings (the recipe's new special tokens, "
            "lora.trainable_token_indices) that ZeRO 3 has spread; set its stage: 2"
        )


class ShardingDegrees(NamedTuple):
    """Over how many processes each part of the training state is spread."""

    weights: int
    gradients: int
    optimizer: int


def get_sharding_degrees(arguments: TrainingArguments) -> ShardingDegrees:
    """1 for each part without FSDP and DeepSpeed."""
    count, zero = arguments.world_size, 3 if uses_fsdp(arguments) else get_zero_stage(arguments)
    return ShardingDegrees(*(count if zero >= stage else 1 for stage in (3, 2, 1)))


def gather_full_weights(trainer: Trainer) -> dict[str, Any] | None:
    """All weights by name, gathered from the processes, empty in all but the writer; None where each holds them all."""
    if trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(trainer.model)
    if get_zero_stage(trainer.args) == 3:
        return trainer.accelerator.get_state_dict(trainer.deepspeed) or {}
    return None
