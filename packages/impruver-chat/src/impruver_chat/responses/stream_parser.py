"""An answer as it comes: reasoning, text and calls told apart; and the message that it becomes."""

import json
from collections.abc import Callable

from impruver_chat.generation.detokenizer import find_partial_match
from impruver_chat.responses.template_markers import TemplateMarkers
from impruver_chat.responses.tool_call_parser import ToolCallFormat, parse_tool_calls

REASONING, TEXT, CALL = "reasoning", "text", "call"
START = "start"


class ResponseStreamParser:
    """Splits a streamed answer into REASONING and TEXT pieces for `emit`; holds back markers and tool calls."""

    def __init__(self, markers: TemplateMarkers, emit: Callable[[str, str], None]):
        self._markers, self._emit = markers, emit
        self._kind = REASONING if markers.starts_in_reasoning else START
        self._thought = markers.starts_in_reasoning
        self._said: list[str] = []
        self._parts = {REASONING: "", TEXT: "", CALL: ""}
        self._held = ""

    def feed(self, piece: str) -> None:
        """The next piece."""
        self._said.append(piece)
        self._held += piece
        while self._advance():
            pass

    def finish(self) -> dict:
        """No more pieces: the rest goes out; the message that the answer is."""
        markers, parts = self._markers, self._parts
        if self._kind != CALL:
            self._emit_held(TEXT if self._kind == START else self._kind, len(self._held))
        parts[CALL] += self._held
        opened = parts[CALL] if markers.tool_calls and markers.tool_calls.start else parts[TEXT]
        if (
            markers.tool_calls
            and (calls := parse_tool_calls(opened, markers.tool_calls))
            and (message := self._build_call_message(calls))
        ):
            return message
        if (
            markers.supports_function_roles
            and not parts[REASONING]
            and (calls := parse_tool_calls("".join(self._said), ToolCallFormat("")))
        ):
            return make_function_call_message(calls)
        if parts[CALL]:
            self._held = parts[CALL]
            self._emit_held(TEXT, len(self._held))
        if not markers.has_reasoning_field:
            return {"role": "assistant", "content": "".join(self._said)}
        thought = parts[REASONING].strip()
        return {"role": "assistant", "content": parts[TEXT]} | ({"reasoning_content": thought} if thought else {})

    def _advance(self) -> bool:
        """Hands on what is certain; True where what is held begins with something new."""
        if self._kind == START:
            return self._detect_start()
        if self._kind == REASONING:
            return self._emit_until(self._markers.reasoning_end, TEXT, keep=False)
        if self._kind == TEXT and self._markers.tool_calls and self._markers.tool_calls.start:
            return self._emit_until(self._markers.tool_calls.start, CALL, keep=True)
        if self._kind == TEXT:
            self._emit_held(TEXT, len(self._held))
        return False

    def _detect_start(self) -> bool:
        begun = self._held.lstrip()
        markers = [mark for mark in (self._markers.reasoning_start, self._markers.answer_prefix) if mark]
        if any(mark.startswith(begun) and mark != begun for mark in markers):
            return False
        self._kind = REASONING if begun.startswith(self._markers.reasoning_start) else TEXT
        if found := next((mark for mark in markers if begun.startswith(mark)), None):
            self._held, self._thought = begun.removeprefix(found), self._kind == REASONING
            if self._kind == TEXT:
                self._said = [self._held]
        return True

    def _emit_until(self, mark: str, following: str, keep: bool) -> bool:
        at = self._held.find(mark)
        if at < 0:
            self._emit_held(self._kind, len(self._held) - find_partial_match(self._held, [mark]))
            return False
        self._emit_held(self._kind, at)
        self._held = self._held if keep else self._held[len(mark) :]
        self._kind = following
        return True

    def _emit_held(self, kind: str, length: int) -> None:
        """Hands on that much of what is held; blanks before reasoning, and before the text behind it, are markers."""
        piece, self._held = self._held[:length], self._held[length:]
        if not self._parts[kind] and self._thought:
            piece = piece.lstrip()
        if piece:
            self._parts[kind] += piece
            self._emit(kind, piece)

    def _build_call_message(self, calls: list[dict]) -> dict | None:
        """The message of an answer that ends in calls; None where the template has no place for what else was said."""
        text = self._parts[TEXT].strip() if self._parts[CALL] else ""
        reasoning = self._parts[REASONING].strip()
        alone, markers = not text and not reasoning, self._markers
        if alone and not (markers.supports_tool_calls and markers.supports_function_roles):
            return make_function_call_message(calls)
        if not markers.supports_tool_calls:
            return None
        functions = [{"id": f"call{at:05d}", "type": "function", "function": call} for at, call in enumerate(calls, 1)]
        thought = {"reasoning_content": reasoning} if reasoning and markers.has_reasoning_field else {}
        return {"role": "assistant", "content": text, **thought, "tool_calls": functions}


def make_function_call_message(calls: list[dict]) -> dict:
    """The message of calls alone, as rows have it: a single one as it is, several as a list."""
    content = calls[0] if len(calls) == 1 else calls
    return {"role": "function_call", "content": json.dumps(content, ensure_ascii=False)}


def get_tool_calls(message: dict) -> list[dict]:
    """The calls in a message of either form, as `{"name", "arguments"}`."""
    if message["role"] == "function_call":
        calls = json.loads(message["content"])
        return calls if isinstance(calls, list) else [calls]
    return [call["function"] for call in message.get("tool_calls", ())]
