"""Compare chat templates with llama.cpp's own engine, where a llama-server is at hand: does it render as ours does?"""

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, warn

from impruver_gguf.ollama.go_template import DATE_VARIABLES
from impruver_gguf.verification.heldout import HeldOutChat, HeldOutExample, VerificationInputs

TIMEOUT = 120  # seconds for a model to load
MAX_TEXT = 2000  # characters that are shown of each text
THINKING, KEEP_REASONING = "enable_thinking", "preserve_reasoning"  # variables that llama-server sets by itself
SERVER_VARIABLES: tuple[dict[str, Any], ...] = (
    {},
    *({KEEP_REASONING: False}, {THINKING: False}, {THINKING: True}),
    *({THINKING: thinks, KEEP_REASONING: False} for thinks in (False, True)),
)


def find_rendering_difference(program: str, path: Path, inputs: VerificationInputs) -> str | None:
    """Say what llama.cpp's engine renders otherwise, with both texts; None where all prompts are the same.

    A BOS in front is left out: the server puts it there itself.
    """
    asked = [example for example in inputs.heldout.examples if example.chat and example.chat.before]
    # A server would resume a last answer, not answer it.
    asked = [example for example in asked if example.chat.before[-1]["role"] != "assistant"]
    if not asked:
        return None
    required: dict[str, None] = {}
    with _running_server(program, path) as address:
        if address is None:
            return None
        for example in asked:
            try:
                failure, variables = _compare_rendering(address, example, inputs.tokenizer.bos_token or "")
            except urllib.error.HTTPError as error:
                if error.code in (404, 405, 501):
                    warn(f"{program} is too old to render templates: its engine is not compared")
                    return None
                answer = error.read().decode("utf-8", "replace")[:MAX_TEXT]
                return f"llama.cpp's engine refuses {example.where}: {answer}"
            except (OSError, HTTPException) as error:  # it ended, or hangs
                warn(f"{program} does not answer any more, its template engine is not compared: {error}")
                return None
            if failure:
                return failure
            if variables:
                required[json.dumps(variables)] = None
    if required:
        options = " or ".join(f"--chat-template-kwargs '{variables}'" for variables in required)
        warn(f"llama-server asks as training did only when it is started with {options}")
    log_info(f"{program} renders {len(asked)} conversations as the tokenizer's template does")
    return None


def _compare_rendering(address: str, example: HeldOutExample, bos: str) -> tuple[str | None, dict[str, Any]]:
    """Say what is rendered otherwise, else which variables the server needs to render a prompt as training did.

    It sets some of its own, the day among them: only what is other with the same on both sides is another engine.
    """
    chat, first = example.chat, None
    day = datetime.now().strftime("%d %b %Y")
    today = [{"date_string": day}] if DATE_VARIABLES.search(chat.template) else []
    for shared in ({}, *today):
        ours = chat.render_prompt(**shared).removeprefix(bos)
        for variables in ({}, *(chat.template_kwargs | variables for variables in SERVER_VARIABLES)):
            theirs = _request_rendering(address, chat, variables | shared).removeprefix(bos)
            if theirs == ours:
                return None, variables | ({"date_string": "the day in training's text"} if shared else {})
            first = first or (theirs, ours)
    theirs, ours = first
    failure = (
        f"llama.cpp's engine renders {example.where} otherwise; llama.cpp: {theirs[:MAX_TEXT]!r}; "
        f"the tokenizer's template: {ours[:MAX_TEXT]!r}"
    )
    return failure, {}


def _request_rendering(address: str, chat: HeldOutChat, variables: Mapping[str, Any]) -> str:
    body = {"messages": chat.before, "add_generation_prompt": True, "chat_template_kwargs": variables}
    body |= {"tools": chat.tools} if chat.tools else {}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/apply-template", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return json.load(answer)["prompt"]


@contextmanager
def _running_server(program: str, path: Path) -> Iterator[str | None]:
    """Run a server with this model; its address, None where it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-m", str(path), "--jinja", "--host", "127.0.0.1", "--port", str(port), "-c", "512"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            address, ready, deadline = f"http://127.0.0.1:{port}", False, time.monotonic() + TIMEOUT
            while not ready and process.poll() is None and time.monotonic() < deadline:
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    ready = True
                except OSError:  # not there yet, or loading
                    time.sleep(0.05)
            if not ready:
                log.seek(0)
                lines = [line.strip() for line in log.read().splitlines() if line.strip()][-2:]
                warn(f"{program} does not start, its template engine is not compared: {' / '.join(lines)}")
            yield address if ready else None
        finally:
            process.kill()
            process.wait()
