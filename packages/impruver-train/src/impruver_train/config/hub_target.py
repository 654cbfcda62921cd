"""Where `trainer.push_to_hub` uploads a finished model to, from the recipe's `trainer`; checks that need no network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from impruver_core.errors import ImpruverError

from impruver_train.config.argument_fields import OLD_NAMES, RENAMED

# What was for Trainer's own uploads of checkpoints.
LEFT_OUT = {
    "hub_strategy": "what is uploaded is the finished model, once",
    "hub_always_push": "what is uploaded is the finished model, once",
}
HUB_FIELDS = ("push_to_hub", "push_to_hub_model_id", "hub_model_id", "hub_private_repo", "hub_revision", *LEFT_OUT)
# As git has it (git check-ref-format), for a branch's name.
NO_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|^[./-]|[./]$|^@$")


@dataclass(frozen=True)
class HubTarget:
    """A repository of the hub; `private` is None where the account's own default decides."""

    repo_id: str
    private: bool | None = None
    revision: str | None = None


def find_hub_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) for each name of a repository or branch that the hub would not take."""
    for name in ("hub_model_id", "push_to_hub_model_id"):
        if values.get(name) is not None:
            why = _find_id_fault(values[name])
            if why:
                yield name, f"{values[name]!r} is no repository's name, as user/name is: {why}"
    revision = values.get("hub_revision")
    if revision is not None and (not isinstance(revision, str) or not revision or NO_BRANCH.search(revision)):
        yield "hub_revision", f"{revision!r} is no branch's name"


def read_hub_target(values: Mapping[str, Any], where: str) -> HubTarget | None:
    """Where the finished model goes to; None without `push_to_hub`. `where` begins a message: `recipe.yaml:3: trainer`.

    Raises:
        ImpruverError: for a repository that is not named, for nobody logged in, for a hub that is not to be reached.
    """
    values = {RENAMED.get(name, name) if name in OLD_NAMES else name: value for name, value in values.items()}
    if not values.get("push_to_hub"):
        return None
    if not values.get("hub_model_id"):
        raise ImpruverError(f"{where}.push_to_hub: where to is not said; set trainer.hub_model_id: USER/NAME")
    from huggingface_hub import constants, get_token

    if not get_token():
        raise ImpruverError(
            f"{where}.push_to_hub: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN to a token "
            "that may write"
        )
    if constants.HF_HUB_OFFLINE:
        raise ImpruverError(f"{where}.push_to_hub: HF_HUB_OFFLINE is set, and nothing can be uploaded; unset it")
    return HubTarget(values["hub_model_id"], values.get("hub_private_repo"), values.get("hub_revision"))


def list_hub_notes(values: Mapping[str, Any]) -> list[str]:
    """Notes on settings of the hub that change nothing."""
    notes = [
        f"trainer.{name} is left out: {why}" for name, why in LEFT_OUT.items() if values.get(name) not in (None, False)
    ]
    if not values.get("push_to_hub") and values.get("hub_model_id"):
        notes.append("trainer.hub_model_id without trainer.push_to_hub: true: nothing is uploaded")
    return notes


def _find_id_fault(repo_id: Any) -> str | None:
    """What is wrong with a repository's name in the hub's own words; None if nothing is."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return str(error).partition(" Use `repo_type`")[0].rstrip(".")
    return None
