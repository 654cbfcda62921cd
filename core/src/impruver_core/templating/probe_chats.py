"""The small messages that templates are probed with; their texts repeat nothing."""

import json

USER = {"role": "user", "content": "probe question one"}
ANSWER = {"role": "assistant", "content": "probe answer two"}
SYSTEM = {"role": "system", "content": "probe system three"}
AGAIN = {"role": "user", "content": "probe question four"}
LAST = {"role": "assistant", "content": "probe answer nine"}
THOUGHT = {"role": "assistant", "content": "probe answer five", "reasoning_content": "probe thought six"}
TOOL = {"role": "tool", "name": "probe_tool", "tool_call_id": "call00001", "content": "probe result seven"}
FUNCTION_CALL = {"role": "function_call", "content": '{"name": "probe_tool", "arguments": {"key": "probe value"}}'}
FUNCTION_RESPONSE = {"role": "function_response", "content": "probe result eight"}
ARGUMENTS = {"key": "probe value"}


def call(as_text: bool, times: int = 1) -> dict:
    """An assistant's message that calls a tool once or several times, the arguments an object or JSON text."""
    function = {"name": "probe_tool", "arguments": json.dumps(ARGUMENTS) if as_text else ARGUMENTS}
    calls = [{"id": f"call{number:05d}", "type": "function", "function": function} for number in range(1, times + 1)]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def probe_schema() -> dict:
    """The schema of the tool that the probes call."""
    parameters = {
        "type": "object",
        "properties": {"key": {"type": "string", "description": "probe"}},
        "required": ["key"],
    }
    function = {"name": "probe_tool", "description": "probe tool", "parameters": parameters}
    return {"type": "function", "function": function}
