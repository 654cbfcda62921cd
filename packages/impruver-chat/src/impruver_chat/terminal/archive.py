"""Conversations on the disk: each is saved as it goes, in a file of its own, and the latest can be resumed."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, get_cache_dir, make_folder, remove_stale_parts
from impruver_core.io.json_schema import TEXT, JsonType, list_of, read_json
from impruver_core.io.jsonl import format_row

from impruver_chat.conversation import Conversation
from impruver_chat.messages import find_fault
from impruver_chat.responses.stream_parser import get_tool_calls

FOLDER = "conversations"  # in the folder of caches
OBJECT = JsonType("an object", lambda value: isinstance(value, dict))
FIELDS = {"model": TEXT, "messages": list_of(OBJECT)}


@dataclass(frozen=True)
class SavedConversation:
    """A conversation in a file: when it was saved last, the model that it was with, its messages."""

    path: Path
    time: float
    model: str
    messages: list[dict]

    def describe(self) -> str:
        """Describe it for a person."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.time))
        return f"{when}, {len(self.messages)} messages, with {self.model}"


class ConversationArchive:
    """The saved conversations, and the file of the one that is going on; `model` is what it is with.

    Where nothing can be saved, that is a warning, once. Files are nobody else's business (0600).
    """

    def __init__(self, model: str):
        self._model, self._can_save = model, True
        self._path: Path | None = None  # of the conversation that is going on, once it has been saved
        self._resumed: Path | None = None  # the file that it continues, and takes the place of
        self._saved: list[dict] = []

    def save(self, conversation: Conversation) -> None:
        """Save the conversation if it has changed; one of which everything was taken back has no file any more."""
        messages = conversation.get_messages()
        if messages == self._saved or not self._can_save:
            return
        try:
            if conversation.messages:
                self._write(messages)
            elif self._path is not None:
                self._path.unlink(missing_ok=True)
        except (OSError, ImpruverError, UnicodeError, ValueError) as error:
            self._can_save = False
            warn(f"this conversation is not saved: {getattr(error, 'strerror', None) or error}")
        self._saved = messages

    def begin_new(self) -> None:
        """From now on another conversation goes on; that before stays saved."""
        self._path, self._resumed, self._saved = None, None, []

    def load(self, number: int) -> SavedConversation:
        """Load the `number`th conversation from the latest on, from 1, less the one that is going on."""
        count = 0
        for count, saved in enumerate(self.read_all(), 1):
            if count == number:
                return saved
        raise ImpruverError(f"there are {count} saved conversations" if count else "no conversation was saved yet")

    def resume(self, saved: SavedConversation) -> None:
        """From now on `saved` goes on, in a new file that takes the place of its own once anything is added."""
        self._path, self._resumed, self._saved = None, saved.path, saved.messages

    def read_all(self) -> Iterator[SavedConversation]:
        """Read the saved conversations, the latest first; a damaged file is passed over with a note."""
        ours = (self._path, self._resumed)
        for path in (path for path in list_files(get_cache_dir() / FOLDER) if path not in ours):
            try:
                yield read_conversation(path)
            except (ImpruverError, OSError) as error:
                warn(f"passed over: {error}")

    def _write(self, messages: list[dict]) -> None:
        if self._path is None:
            folder = get_cache_dir() / FOLDER
            make_folder(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
            remove_stale_parts(folder)
            self._path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns()}.json"
        with atomic_write(self._path, permissions=0o600) as file:
            file.write(format_row({"model": self._model, "messages": messages}) + "\n")
        if self._resumed is not None:
            with suppress(OSError):
                self._resumed.unlink(missing_ok=True)
            self._resumed = None


def list_files(folder: Path) -> list[Path]:
    """List the files of conversations, the latest first."""
    times: dict[Path, int] = {}
    for path in folder.glob("[!.]*.json"):
        with suppress(OSError):  # another session has just removed it
            times[path] = path.stat().st_mtime_ns
    return sorted(times, key=lambda path: (times[path], path.name), reverse=True)


def read_conversation(path: Path) -> SavedConversation:
    """Read a saved conversation; ImpruverError for a file that is not as it was written."""
    content = read_json(path, FIELDS)
    messages = content.get("messages") or []
    fault = find_fault(messages) if messages else "it holds no messages"
    if fault or not has_whole_messages(messages):
        raise ImpruverError(f"{path}: damaged: {fault or 'a message is not as it was written'}")
    return SavedConversation(path, path.stat().st_mtime, content.get("model") or "another model", messages)


def has_whole_messages(messages: list[dict[str, Any]]) -> bool:
    """Whether the texts and calls of messages are such as can be shown and asked with."""
    try:
        format_row({"messages": messages}).encode()
        calls = [call for message in messages for call in get_tool_calls(message)]
        named = all(isinstance(call["name"], str) and "arguments" in call for call in calls)
        identified = all(isinstance(call["id"], str) for message in messages for call in message.get("tool_calls", ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    texts = all(isinstance(message.get("content"), str | None) for message in messages)
    return named and identified and texts
