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
from pathlib import Path
from typing import Any

from impruver_core.cli.console import say, warn
from impruver_core.errors import RefusedError
from impruver_core.templating.render import render

from impruver_gguf.heldout import Row

PATIENCE = 120  # seconds for a model to load
SHOWN = 2000  # characters of each text


def other_rendering(program: str, model: Path, rows: Sequence[Row], bos: str | None) -> str | None:
    """What llama.cpp's engine renders otherwise, with both texts; None where all that asks for an answer is the same.

    A BOS in front is left out: the server puts it there itself.
    """
    asked = [row for row in rows if row.chat and row.chat["before"]]
    if not asked:
        return None
    with _running(program, model) as address:
        if address is None:
            return None
        for row in asked:
            body, ours = _request(row)
            try:
                theirs = _post(f"{address}/apply-template", body)["prompt"]
            except urllib.error.HTTPError as error:
                if error.code in (404, 405, 501):
                    warn(f"{program} is too old to render templates: its engine is not compared")
                    return None
                said = error.read().decode("utf-8", "replace")[:SHOWN]
                return f"llama.cpp's engine refuses {row.where}: {said}"
            if bos:
                theirs, ours = theirs.removeprefix(bos), ours.removeprefix(bos)
            if theirs != ours:
                return (
                    f"llama.cpp's engine renders {row.where} otherwise; llama.cpp: {theirs[:SHOWN]!r}; "
                    f"the tokenizer's template: {ours[:SHOWN]!r}"
                )
    say(f"{program} renders {len(asked)} conversations as the tokenizer's template does")
    return None


def _request(row: Row) -> tuple[dict[str, Any], str]:
    """(what the server is asked, our rendering), both of today where a template asks for the day."""
    chat = row.chat
    named = {name: value for name, value in chat["kwargs"].items() if name != "date_string"}
    variables = {name: value for name, value in chat["variables"].items() if name != "date_string"}
    try:
        ours = render(chat["template"], chat["before"], chat["tools"], add_generation_prompt=True, variables=variables)
    except RefusedError:
        ours = chat["prompt"]
    body = {"messages": chat["before"], "add_generation_prompt": True}
    body |= {"tools": chat["tools"]} if chat["tools"] else {}
    body |= {"chat_template_kwargs": named} if named else {}
    return body, str.__str__(ours)


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


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)
