"""Several processes of one run: one speaks and writes, all stop and leave together."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from impruver_core.cli.console import log_info, set_mute
from impruver_core.cli.runner import STOPPED_BY_KEYBOARD, STOPPED_BY_SIGNAL, TerminationSignal
from impruver_core.errors import ImpruverError

WAITS = 10.0  # seconds in which a launcher ends the others once the first has told what happened


def first_on_machine() -> bool:
    """Whether this process is the first of its run here, or the only one."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


@contextmanager
def one_voice() -> Iterator[None]:
    """Has only the first process on each machine speak.

    What ends the others ends it too, as a rule: they leave the telling to it, and tell it themselves when nobody ended
    them for that.
    """
    if "LOCAL_RANK" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch is not imported yet; its warnings are no user's
    if first_on_machine():
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


def leave(code: int) -> int:
    """The exit code; a process that a launcher started ends here.

    Threads of torch's process groups can abort a process that winds down (SIGABRT), and the launcher would take a run
    whose work is done for a failed one.
    """
    if "LOCAL_RANK" in os.environ and "torch" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def together() -> bool:
    """Whether several processes have met."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def wait_for_all() -> None:
    """Until all processes have come here; nothing for one alone."""
    from torch import distributed

    if together():
        distributed.barrier()


def part() -> None:
    """Ends the meeting of several processes, all together: one that just left would take the writer along."""
    from torch import distributed

    if together():
        distributed.barrier()
        distributed.destroy_process_group()


GATHERS = "stage3_gather_16bit_weights_on_model_save"


def by_fsdp(arguments: Any) -> bool:
    """Whether the recipe or accelerate's own configuration asks for FSDP."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def stage(arguments: Any) -> int:
    """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
    config = getattr(arguments, "hf_deepspeed_config", None)
    return int(config.get_value("zero_optimization.stage") or 0) if config is not None else 0


def check(arguments: Any, token_rows: bool, dry_run: bool) -> None:
    """ImpruverError for what FSDP or DeepSpeed would not do as asked; in a dry run a word that it wants processes.

    `token_rows`: an adapter trains rows of the embeddings.
    """
    if stage(arguments) == 3:
        check_zero3(arguments.hf_deepspeed_config, token_rows)
    if not by_fsdp(arguments):
        return
    if arguments.device.type == "cpu":
        raise ImpruverError(
            "trainer.fsdp: accelerate shards models over GPUs only (over CPUs each process would hold a whole copy, "
            "unsaid); leave it out"
        )
    if arguments.world_size == 1:
        told = "trainer.fsdp shards the model over several processes: impruver run --nproc_per_node N finetune …"
        if not dry_run:
            raise ImpruverError(f"{told}; this is one. Start it so, or leave trainer.fsdp out")
        log_info(f"note: {told}")


def check_zero3(config: Any, token_rows: bool) -> None:
    """ImpruverError where ZeRO 3 would fail while it loads or saves."""
    if not config.get_value(f"zero_optimization.{GATHERS}"):
        raise ImpruverError(
            f"trainer.deepspeed: ZeRO 3 leaves no process with whole weights to save; set {GATHERS}: true in its "
            "zero_optimization"
        )
    if token_rows:
        raise ImpruverError(
            "trainer.deepspeed: peft can't train rows of embeddings (the recipe's new special tokens, "
            "lora.trainable_token_indices) that ZeRO 3 has spread; set its stage: 2"
        )


def parts(arguments: Any) -> tuple[int, int, int]:
    """Over how many processes weights, gradients and optimizer state are spread."""
    count = arguments.world_size
    if by_fsdp(arguments):
        return count, count, count
    zero = stage(arguments)
    return count if zero >= 3 else 1, count if zero >= 2 else 1, count if zero >= 1 else 1


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """All weights by name, gathered from the processes, empty in all but the writer; None where each holds them all."""
    if trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(trainer.model)
    if stage(trainer.args) == 3:
        return trainer.accelerator.get_state_dict(trainer.deepspeed) or {}
    return None
