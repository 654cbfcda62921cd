"""llama.cpp's own template engine, where a llama-server is at hand: does it render as ours does?"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.cli.console import log_info, warn

from impruver_gguf.ollama.go_template import DAY
from impruver_gguf.verification.heldout import Row

PATIENCE = 120  # seconds for a model to load


SHOWN = 2000  # characters of each text


THINKING, KEPT = "enable_thinking", "preserve_reasoning"  # variables that llama-server sets by itself


SERVERS_OWN: tuple[dict[str, Any], ...] = (
    {},
    *({KEPT: False}, {THINKING: False}, {THINKING: True}),
    *({THINKING: thinks, KEPT: False} for thinks in (False, True)),
)


def other_rendering(program: str, model: Path, rows: Sequence[Row], bos: str | None) -> str | None:
    """What llama.cpp's engine renders otherwise, with both texts; None where all that asks for an answer is the same.

    A BOS in front is left out: the server puts it there itself.
    """
    asked = [row for row in rows if row.chat and row.chat["before"]]
    asked = [row for row in asked if row.chat["before"][-1]["role"] != "assistant"]  # which it would go on with
    if not asked:
        return None
    needed: dict[str, None] = {}
    with _running(program, model) as address:
        if address is None:
            return None
        for row in asked:
            try:
                failure, further = _compared(address, row, bos or "")
            except urllib.error.HTTPError as error:
                if error.code in (404, 405, 501):
                    warn(f"{program} is too old to render templates: its engine is not compared")
                    return None
                said = error.read().decode("utf-8", "replace")[:SHOWN]
                return f"llama.cpp's engine refuses {row.where}: {said}"
            if failure:
                return failure
            if further:
                needed[json.dumps(further)] = None
    if needed:
        told = " or ".join(f"--chat-template-kwargs '{variables}'" for variables in needed)
        warn(f"llama-server asks as training did only when it is started with {told}")
    log_info(f"{program} renders {len(asked)} conversations as the tokenizer's template does")
    return None


def _compared(address: str, row: Row, bos: str) -> tuple[str | None, dict[str, Any]]:
    """(what is rendered otherwise, the variables that the server needs to render as training did).

    It sets some of its own, the day among them: only what is other with the same on both sides is another engine.
    """
    chat, first = row.chat, None
    named, day = chat["kwargs"], datetime.now().strftime("%d %b %Y")
    today = [{"date_string": day}] if DAY.search(chat["template"]) else []
    for shared in ({}, *today):
        known = chat["variables"] | shared
        text = render_template(
            chat["template"], chat["before"], chat["tools"], add_generation_prompt=True, variables=known
        )
        ours = str.__str__(text).removeprefix(bos)
        for further in ({}, *(named | variables for variables in SERVERS_OWN)):
            theirs = _asked(address, chat, further | shared).removeprefix(bos)
            if theirs == ours:
                return None, further | ({"date_string": "the day in training's text"} if shared else {})
            first = first or (theirs, ours)
    theirs, ours = first
    return (
        f"llama.cpp's engine renders {row.where} otherwise; llama.cpp: {theirs[:SHOWN]!r}; "
        f"the tokenizer's template: {ours[:SHOWN]!r}"
    ), {}


def _asked(address: str, chat: dict[str, Any], variables: dict[str, Any]) -> str:
    body = {"messages": chat["before"], "add_generation_prompt": True, "chat_template_kwargs": variables}
    body |= {"tools": chat["tools"]} if chat["tools"] else {}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/apply-template", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)["prompt"]


@contextmanager
def _running(program: str, model: Path) -> Iterator[str | None]:
    """The address of a server with this model; None where it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-m", str(model), "--jinja", "--host", "127.0.0.1", "--port", str(port), "-c", "512"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            ready = _wait(process, f"http://127.0.0.1:{port}")
            if ready is None:
                log.seek(0)
                said = [line.strip() for line in log.read().splitlines() if line.strip()][-2:]
                warn(f"{program} does not start, its template engine is not compared: {' / '.join(said)}")
            yield ready
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, address: str) -> str | None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return address
        except OSError:  # not there yet, or loading
            time.sleep(0.05)
    return None
