"""Split an answer into reasoning, text and tool calls while it is generated, and build the message that it is."""

import json
from collections.abc import Callable

from impruver_core.chat_template.analysis.prober import build_call_id

from impruver_chat.generation.detokenizer import find_partial_match
from impruver_chat.responses.template_markers import TemplateMarkers, ToolCallFormat, parse_tool_calls

REASONING, TEXT, CALL = "reasoning", "text", "call"
START = "start"


class ResponseStreamParser:
    """Splits pieces of an answer for `emit(REASONING or TEXT, piece)`; markers and tool calls are held back."""

    def __init__(self, markers: TemplateMarkers, emit: Callable[[str, str], None]):
        self._markers, self._emit = markers, emit
        self._kind = REASONING if markers.starts_in_reasoning else START
        self._has_reasoned = markers.starts_in_reasoning
        self._answer = self._held = ""
        self._parts = {REASONING: "", TEXT: "", CALL: ""}

    def feed(self, piece: str) -> None:
        """Add the next piece."""
        self._answer += piece
        self._held += piece
        while self._advance():
            pass

    def finish(self) -> dict:
        """Emit what is held back, since no more pieces come; the message of the whole answer."""
        markers, parts = self._markers, self._parts
        if self._kind != CALL:
            self._emit_held(TEXT if self._kind == START else self._kind, len(self._held))
        parts[CALL] += self._held
        if form := markers.tool_calls:
            calls = parse_tool_calls(parts[CALL] if form.start else parts[TEXT], form)
            if calls and (message := self._build_call_message(calls)):
                return message
        json_calls = markers.supports_function_roles and not markers.supports_tool_calls and not parts[REASONING]
        if json_calls and (calls := parse_tool_calls(self._answer, ToolCallFormat(""))):
            return make_function_call_message(calls)
        if parts[CALL]:
            self._held = parts[CALL]
            self._emit_held(TEXT, len(self._held))
        if not markers.reasoning.has_field:
            return {"role": "assistant", "content": self._answer}
        reasoning = parts[REASONING].strip()
        return {"role": "assistant", "content": parts[TEXT]} | ({"reasoning_content": reasoning} if reasoning else {})

    def _advance(self) -> bool:
        """Emit what is certain; True where what is still held begins with something of another kind."""
        markers = self._markers
        if self._kind == START:
            return self._detect_start()
        if self._kind == REASONING:
            return self._emit_until(markers.reasoning.end, TEXT, len(markers.reasoning.end))
        if self._kind == TEXT and markers.tool_calls and markers.tool_calls.start:
            return self._emit_until(markers.tool_calls.start, CALL, 0)
        if self._kind == TEXT:
            self._emit_held(TEXT, len(self._held))
        return False

    def _detect_start(self) -> bool:
        start, reasoning_start = self._held.lstrip(), self._markers.reasoning.start
        markers = [marker for marker in (reasoning_start, self._markers.answer_prefix) if marker]
        if any(marker.startswith(start) and marker != start for marker in markers):
            return False
        self._kind = REASONING if start.startswith(reasoning_start) else TEXT
        if marker := next((marker for marker in markers if start.startswith(marker)), None):
            self._held, self._has_reasoned = start.removeprefix(marker), self._kind == REASONING
            if self._kind == TEXT:
                self._answer = self._held
        return True

    def _emit_until(self, marker: str, next_kind: str, skipped: int) -> bool:
        """Emit up to a marker, of which so many characters are skipped; True where it is there."""
        position = self._held.find(marker)
        if position < 0:
            self._emit_held(self._kind, len(self._held) - find_partial_match(self._held, [marker]))
            return False
        self._emit_held(self._kind, position)
        self._held = self._held[skipped:]
        self._kind = next_kind
        return True

    def _emit_held(self, kind: str, length: int) -> None:
        """Emit so many of the characters held; blanks before reasoning, and before the text behind it, are markers."""
        piece, self._held = self._held[:length], self._held[length:]
        if not self._parts[kind] and self._has_reasoned:
            piece = piece.lstrip()
        if piece:
            self._parts[kind] += piece
            self._emit(kind, piece)

    def _build_call_message(self, calls: list[dict]) -> dict | None:
        """Build the message of an answer that ends in calls; None where the template can't hold all of the answer."""
        text = self._parts[TEXT].strip() if self._parts[CALL] else ""
        reasoning, markers = self._parts[REASONING].strip(), self._markers
        if not text and not reasoning and not (markers.supports_tool_calls and markers.supports_function_roles):
            return make_function_call_message(calls)
        if not markers.supports_tool_calls:
            return None
        tool_calls = [
            {"id": build_call_id(call["name"], number, markers.named_call_ids), "type": "function", "function": call}
            for number, call in enumerate(calls)
        ]
        field = {"reasoning_content": reasoning} if reasoning and markers.reasoning.has_field else {}
        return {"role": "assistant", "content": text, **field, "tool_calls": tool_calls}


def parse_response(markers: TemplateMarkers, text: str) -> dict:
    """Parse a whole answer into its message."""
    parser = ResponseStreamParser(markers, lambda kind, piece: None)
    parser.feed(text)
    return parser.finish()


def make_function_call_message(calls: list[dict]) -> dict:
    """Make the message of calls alone, as rows have it: a single one as it is, several as a list."""
    content = calls[0] if len(calls) == 1 else calls
    return {"role": "function_call", "content": json.dumps(content, ensure_ascii=False)}


def get_tool_calls(message: dict) -> list[dict]:
    """The calls in a message of either form, as `{"name", "arguments"}`."""
    if message["role"] == "function_call":
        calls = json.loads(message["content"])
        return calls if isinstance(calls, list) else [calls]
    return [call["function"] for call in message.get("tool_calls", ())]
