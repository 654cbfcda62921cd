"""Uploads a finished model to the hub, in one commit; before training, whether that will be allowed.

A failure never costs the model: it is finished and saved by then, and the same command uploads it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import is_quiet, log_info
from impruver_core.cli.stop_signals import TerminationSignal
from impruver_core.errors import ImpruverError, describe_error
from impruver_core.io.atomic import format_size
from impruver_core.io.json_schema import read_json
from impruver_core.io.manifest import read_manifest

from impruver_train.checkpointing.output_dir import MANIFEST
from impruver_train.config.hub_target import HubTarget
from impruver_train.saving.model_card import build_model_card, make_base_name, read_metrics
from impruver_train.saving.public_copies import README, build_public_copies

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADAPTER_CONFIG = "adapter_config.json"
REFUSED = (401, 403)  # answers that mean "not you"; others may be a hub that does not know the question


def prepare_repository(target: HubTarget) -> HubTarget:
    """Makes the repository and the branch if need be; `target` with the repository's full name.

    Raises:
        ImpruverError: where the hub is not to be reached or refuses, before hours of work.
    """
    api = _make_api()
    try:
        name = api.create_repo(target.repo_id, private=target.private, exist_ok=True).repo_id
        _check_permission(api, name)
        if target.private and _is_public(api, name):
            raise ImpruverError(
                f"trainer.hub_private_repo: {name} is there already, and public; make it private on the hub, set "
                "another trainer.hub_model_id, or leave hub_private_repo out"
            )
        if target.revision and not target.revision.startswith("refs/"):
            api.create_branch(name, branch=target.revision, exist_ok=True)
    except ImpruverError:
        raise
    except Exception as error:
        why = _describe(error)
        raise ImpruverError(f"trainer.push_to_hub: {target.repo_id} can't be uploaded to: {why}") from error
    return replace(target, repo_id=name)


def describe_upload(target: HubTarget, rows: int | None) -> str:
    """The line of a run's summary: what goes where. `rows`: how many of val_path's are among it, if that is known."""
    seen = {True: "private", False: "public", None: "public or not as your account's new ones are"}[target.private]
    revision = f", branch {target.revision}" if target.revision else ""
    among = f", {rows} rows of val_path (heldout.jsonl) among it" if rows else ""
    return f"hub: the finished model goes to {target.repo_id}{revision}, {seen}{among}"


def upload_finished_run(output_dir: Path, recipe_dir: Path | None, target: HubTarget) -> str:
    """`prepare_repository` and `upload_model`, for a model that an earlier run of the command left."""
    with _keeping_the_model(output_dir, target):
        target = prepare_repository(target)
    return upload_model(output_dir, recipe_dir, target)


def upload_model(output_dir: Path, recipe_dir: Path | None, target: HubTarget) -> str:
    """Uploads what a finished run left in `output_dir`; the address of the repository.

    Files that the repository has already are not sent again. Raises ImpruverError with the way on for any failure.
    """
    with _keeping_the_model(output_dir, target), tempfile.TemporaryDirectory() as folder:
        from huggingface_hub import CommitOperationAdd

        files = build_public_copies(output_dir, recipe_dir, Path(folder))
        if README not in files:
            files[README] = _write_model_card(Path(folder) / README, output_dir, files[MANIFEST], target.repo_id)
        log_info(f"uploading {len(files)} files, {format_size(sum(map(os.path.getsize, files.values())))}")
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
        api = _make_api()
        api.create_commit(target.repo_id, added, commit_message="Upload a finished model", revision=target.revision)
        return f"{api.endpoint}/{target.repo_id}"


@contextmanager
def _keeping_the_model(output_dir: Path, target: HubTarget) -> Iterator[None]:
    """Whatever ends the upload within says that the model is there, and what uploads it."""
    way_on = f"the model is finished in {output_dir}; the same command again uploads it"
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal) as stop:
        raise type(stop)(f"the upload to {target.repo_id} is not complete; {way_on}") from None
    except ImpruverError as error:
        raise ImpruverError(f"{error}; {way_on}") from error
    except Exception as error:
        why = _describe(error)
        raise ImpruverError(f"trainer.push_to_hub: the upload to {target.repo_id} failed: {why}; {way_on}") from error


def _write_model_card(path: Path, output_dir: Path, manifest: Path, repo_id: str) -> Path:
    """Writes the model card of the run to `path`; `manifest` is the one that is published."""
    adapter = output_dir / ADAPTER_CONFIG
    if adapter.is_file():
        name = read_json(adapter).get("base_model_name_or_path")
    else:
        name = (read_manifest(output_dir / MANIFEST)["recipe"].get("model") or {}).get("name")
    base = make_base_name(name)  # of what was written here, which still tells an id from a folder
    metrics = read_metrics(output_dir / "metrics.jsonl")
    card = build_model_card(read_manifest(manifest), base, adapter.is_file(), repo_id, metrics)
    path.write_text(card, encoding="utf-8", newline="\n")
    return path


def _make_api() -> HfApi:
    """The hub's client; its progress bars are for a terminal."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    if is_quiet() or not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(token=get_token(), library_name="impruver-train")


def _check_permission(api: HfApi, name: str) -> None:
    """Raises what the hub answers where this token may not write there: a repository of others may be there already."""
    _ask(lambda: api.auth_check(name, write=True), refused=True)


def _is_public(api: HfApi, name: str) -> bool:
    info = _ask(lambda: api.repo_info(name))
    return info is not None and info.private is False


def _ask(question: Callable[[], Any], refused: bool = False) -> Any:
    """The hub's answer; None for an error, but for a refusal where `refused`."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return question()
    except HfHubHTTPError as error:
        if refused and error.response.status_code in REFUSED:
            raise
        return None


def _describe(error: Exception) -> str:
    return describe_error(error)[:400].rstrip(". ")
