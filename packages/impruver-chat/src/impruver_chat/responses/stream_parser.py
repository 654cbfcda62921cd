"""An answer as it comes: reasoning, text and calls told apart; and the message that it becomes."""

import json
from collections.abc import Callable

from impruver_chat.generation.detokenizer import possible_end
from impruver_chat.responses.template_markers import Marks
from impruver_chat.responses.tool_call_parser import CallForm, calls_in

REASONING, TEXT, CALL = "reasoning", "text", "call"


START = "start"


class Speech:
    """Takes the pieces of an answer and hands them on as (REASONING or TEXT, piece); marks and calls are held back."""

    def __init__(self, marks: Marks, emit: Callable[[str, str], None]):
        self._marks, self._emit = marks, emit
        self._kind = REASONING if marks.inside else START
        self._thought = marks.inside
        self._said: list[str] = []
        self._parts = {REASONING: "", TEXT: "", CALL: ""}
        self._held = ""

    def put(self, piece: str) -> None:
        """The next piece."""
        self._said.append(piece)
        self._held += piece
        while self._step():
            pass

    def end(self) -> dict:
        """No more pieces: the rest goes out; the message that the answer is."""
        marks, parts = self._marks, self._parts
        if self._kind != CALL:
            self._tell(TEXT if self._kind == START else self._kind, len(self._held))
        parts[CALL] += self._held
        opened = parts[CALL] if marks.calls and marks.calls.opens else parts[TEXT]
        if marks.calls and (calls := calls_in(opened, marks.calls)) and (message := self._calling(calls)):
            return message
        if marks.as_role and not parts[REASONING] and (calls := calls_in("".join(self._said), CallForm(""))):
            return as_role(calls)
        if parts[CALL]:
            self._held = parts[CALL]
            self._tell(TEXT, len(self._held))
        if not marks.as_field:
            return {"role": "assistant", "content": "".join(self._said)}
        thought = parts[REASONING].strip()
        return {"role": "assistant", "content": parts[TEXT]} | ({"reasoning_content": thought} if thought else {})

    def _step(self) -> bool:
        """Hands on what is certain; True where what is held begins with something new."""
        if self._kind == START:
            return self._open()
        if self._kind == REASONING:
            return self._until(self._marks.closes, TEXT, keep=False)
        if self._kind == TEXT and self._marks.calls and self._marks.calls.opens:
            return self._until(self._marks.calls.opens, CALL, keep=True)
        if self._kind == TEXT:
            self._tell(TEXT, len(self._held))
        return False

    def _open(self) -> bool:
        begun = self._held.lstrip()
        marks = [mark for mark in (self._marks.opens, self._marks.before) if mark]
        if any(mark.startswith(begun) and mark != begun for mark in marks):
            return False
        self._kind = REASONING if begun.startswith(self._marks.opens) else TEXT
        if found := next((mark for mark in marks if begun.startswith(mark)), None):
            self._held, self._thought = begun.removeprefix(found), self._kind == REASONING
            if self._kind == TEXT:
                self._said = [self._held]
        return True

    def _until(self, mark: str, following: str, keep: bool) -> bool:
        at = self._held.find(mark)
        if at < 0:
            self._tell(self._kind, len(self._held) - possible_end(self._held, [mark]))
            return False
        self._tell(self._kind, at)
        self._held = self._held if keep else self._held[len(mark) :]
        self._kind = following
        return True

    def _tell(self, kind: str, length: int) -> None:
        """Hands on that much of what is held; blanks before reasoning, and before the text behind it, are marks."""
        piece, self._held = self._held[:length], self._held[length:]
        if not self._parts[kind] and self._thought:
            piece = piece.lstrip()
        if piece:
            self._parts[kind] += piece
            self._emit(kind, piece)

    def _calling(self, calls: list[dict]) -> dict | None:
        """The message of an answer that ends in calls; None where the template has no place for what else was said."""
        text = self._parts[TEXT].strip() if self._parts[CALL] else ""
        reasoning = self._parts[REASONING].strip()
        alone, marks = not text and not reasoning, self._marks
        if alone and not (marks.as_calls and marks.as_role):
            return as_role(calls)
        if not marks.as_calls:
            return None
        functions = [{"id": f"call{at:05d}", "type": "function", "function": call} for at, call in enumerate(calls, 1)]
        thought = {"reasoning_content": reasoning} if reasoning and marks.as_field else {}
        return {"role": "assistant", "content": text, **thought, "tool_calls": functions}


def as_role(calls: list[dict]) -> dict:
    """The message of calls alone, as rows have it: a single one as it is, several as a list."""
    content = calls[0] if len(calls) == 1 else calls
    return {"role": "function_call", "content": json.dumps(content, ensure_ascii=False)}


def calls_of(message: dict) -> list[dict]:
    """The calls in a message of either form, as `{"name", "arguments"}`."""
    if message["role"] == "function_call":
        calls = json.loads(message["content"])
        return calls if isinstance(calls, list) else [calls]
    return [call["function"] for call in message.get("tool_calls", ())]
