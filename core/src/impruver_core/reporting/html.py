"""A page of sections: plain data and spans of text in, HTML out, everything escaped.

A span is (text, kind): "", "plain" (not dimmed among texts), "learned", "special", "differs", "left_out".
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html.jinja")
Span = tuple[str, str]


def render_page(title: str, lead: str, sections: Iterable[dict]) -> str:
    """The whole page: no script, and nothing that it would have to load."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=_format_cell, is_number=_is_number)
    environment.filters["anchor"] = lambda title: re.sub(r"\W+", "-", title.lower()).strip("-")
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    # A lone surrogate, which JSON may hold, can't be written.
    text = template.render(title=title, lead=lead, sections=list(sections))
    return text.encode("utf-8", "replace").decode("utf-8")


def build_section(title: str, note: str, *parts: dict | None) -> dict:
    """A heading, a line below it and what belongs there; parts that are None are left out."""
    return {"title": title, "note": note, "parts": [part for part in parts if part is not None]}


def build_facts(items: Mapping[str, Any]) -> dict:
    """The few numbers that matter, large."""
    return {"kind": "facts", "items": dict(items)}


def build_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict:
    """Numbers to the right, with thousands apart."""
    return {"kind": "table", "header": list(header), "rows": [list(row) for row in rows]}


def build_texts(items: Iterable[tuple[str, Sequence[Span]]]) -> dict:
    """(caption, spans) one below the other."""
    return {"kind": "texts", "items": list(items)}


def build_pairs(items: Iterable[tuple[str, tuple[str, Sequence[Span]], tuple[str, Sequence[Span]]]]) -> dict:
    """(caption, left, right), each side a (caption, spans), side by side."""
    return {"kind": "pairs", "items": list(items)}


def truncate_spans(spans: Iterable[Span], most: int) -> list[Span]:
    """The first `most` characters, and how many more there are."""
    shown, left, more = [], most, 0
    for text, kind in spans:
        if text[:left]:
            shown.append((text[:left], kind))
        more += max(0, len(text) - left)
        left = max(0, left - len(text))
    return [*shown, (f"… {more:,} more characters", "left_out")] if more else shown


def mark_strings(spans: Iterable[Span], strings: Sequence[str], kind: str = "special") -> list[Span]:
    """The spans, with each of `strings` in them as a span of its own."""
    longest_first = sorted(filter(None, strings), key=len, reverse=True)
    if not longest_first:
        return list(spans)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
    return [
        (part, f"{own} {kind}".strip() if index % 2 else own)
        for text, own in spans
        for index, part in enumerate(pattern.split(text))
        if part
    ]


def _format_cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"[\d.,]+%", value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)
