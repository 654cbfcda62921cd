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
from impruver_core.cli.stop_signals import TerminationSignal, describe
from impruver_core.commands.run import PEER_LOST, REPORTING
from impruver_core.errors import ImpruverError

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

WAITS = 10.0  # seconds in which a launcher ends the others once the first has said what happened
# How torch's process groups (gloo, NCCL, the store that they meet at) say that another process is gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "failed to recv")
LOST += (
    "remote process exited",
    "remote process exiting",
    "Connection was likely closed",
    "NCCL communicator was aborted",
)
GATHERS = "stage3_gather_16bit_weights_on_model_save"


def is_first_on_machine() -> bool:
    """Whether this process is the first of its run here, or the only one."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def is_first_of_all() -> bool:
    """Whether this process is the first of its run on all machines, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def is_launched() -> bool:
    """Whether a launcher started this process, maybe as one of several."""
    return "LOCAL_RANK" in os.environ


@contextmanager
def only_rank_zero_logs() -> Iterator[None]:
    """Has only the first process on each machine speak; another prints what ends it when nobody ended it first.

    Where another process is gone, that is no fault of this one: the launcher says what happened, and ends it.
    """
    if is_launched():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch is not imported yet; its warnings are no user's
    first = is_first_on_machine()
    set_mute(not first)
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal) as stop:
        if first:
            raise
        raise SystemExit(describe(stop)[1]) from None
    except BaseException as error:
        words = find_lost_peer(error)
        if words and REPORTING in os.environ:
            exit_worker(PEER_LOST)
        if words or not first:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(WAITS)
        if words:
            raise ImpruverError(f"another process of this run ended, or the connection to it broke: {words}") from None
        raise
    finally:
        set_mute(False)


def find_lost_peer(error: BaseException | None) -> str | None:
    """The words in which `error`, or what it came from, says that another process of the run is gone; else None."""
    if not is_launched():
        return None
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        text = str(error)
        if isinstance(error, (RuntimeError, ConnectionError)) and any(words in text for words in LOST):
            return text.strip().splitlines()[0][:200]
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def exit_worker(code: int) -> int:
    """Returns the exit code; a process that a launcher started ends here."""
    # Threads of torch's process groups can abort one that winds down (SIGABRT): the launcher would see a failed run.
    if is_launched() and "torch" in sys.modules:
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
    zero3 = get_zero_stage(arguments) == 3
    if zero3 and not arguments.hf_deepspeed_config.get_value(f"zero_optimization.{GATHERS}"):
        raise ImpruverError(
            f"trainer.deepspeed: ZeRO 3 leaves no process with whole weights to save; set {GATHERS}: true in its "
            "zero_optimization"
        )
    if zero3 and trains_token_rows:
        raise ImpruverError(
            "trainer.deepspeed: peft can't train rows of embeddings (the recipe's new special tokens, "
            "lora.trainable_token_indices) that ZeRO 3 has spread; set its stage: 2"
        )
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
