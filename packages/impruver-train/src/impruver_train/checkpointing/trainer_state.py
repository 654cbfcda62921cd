"""trainer_state.json of a checkpoint, checked as what transformers makes its TrainerState of."""

from math import inf
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import INDEX, TEXT, JsonType, check_keys, list_of, read_json

from impruver_train.checkpointing.checkpoints import STATE
from impruver_train.config.argument_fields import find_faults, read_dataclass_fields

LARGEST_STATE = 1 << 28  # bytes: the logs of a million steps
CALLBACKS = JsonType(
    "an object with Trainer's own state, TrainerControl",
    lambda value: isinstance(value, dict) and isinstance(value.get("TrainerControl"), (dict, list)),
)
KEYS = {
    "global_step": INDEX,
    "log_history": list_of(JsonType("an object", lambda value: isinstance(value, dict))),
    "best_model_checkpoint": TEXT,
    "stateful_callbacks": CALLBACKS,
}
NEEDED = ("global_step", "train_batch_size", "stateful_callbacks")  # Trainer compares, counts from and adds to them


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of the run until then; ImpruverError where transformers can't go on from it."""
    path = folder / STATE
    if not path.is_file():
        raise ImpruverError(f"{path} is not there, or no ordinary file: it is no checkpoint to resume from")
    if path.stat().st_size > LARGEST_STATE:
        raise ImpruverError(f"{path}: {path.stat().st_size:,} bytes are no state of a run; copy it again")
    state = read_json(path)
    fields = read_dataclass_fields("transformers", "trainer_callback.py", "TrainerState")
    faults = [f"{name}: {what}" for name, what in find_faults(state, fields)]
    faults += [f"{name} is no number of a run" for name, value in state.items() if not _is_plausible(value)]
    absent = [name for name in NEEDED if state.get(name) is None]
    if faults or absent:
        raise ImpruverError(
            f"{path}: {'; '.join(faults) or f'{absent[0]} is missing'}; resume from a checkpoint that this version of "
            "transformers wrote"
        )
    check_keys(state, KEYS, path)
    return state


def _is_plausible(value: Any) -> bool:
    """Whether a value is no number, or one that a run may have: infinite is the best metric before there is any."""
    return type(value) not in (int, float) or abs(value) < 1e38 or abs(value) == inf
