"""Lines with colours, by what is to be read on them: characters that are no blanks, no frames, no marks of Markdown."""

import re
from os.path import commonprefix

COLOUR = r"\x1b\[[0-9;]*m"
UNREAD = re.compile(rf"{COLOUR}|[\s\u2500-\u257f*_`~|#•-]+")
PIECE = re.compile(rf"{COLOUR}|.")
MARGIN = re.compile(rf"((?:{COLOUR})*)\s+")


def visible_text(line: str) -> str:
    """What is to be read on a line."""
    return UNREAD.sub("", line)


def measure_width(line: str) -> int:
    """How many columns of a terminal a line takes."""
    from rich.cells import cell_len

    return cell_len(re.sub(COLOUR, "", line))


def strip_blank_lines(lines: list[str]) -> list[str]:
    """Lines less the empty ones at both ends; one at least."""
    there = [at for at, line in enumerate(lines) if re.sub(COLOUR, "", line).strip()]
    return lines[there[0] : there[-1] + 1] if there else lines[:1]


def lines_after(above: str, lines: list[str]) -> list[str]:
    """Lines less what can be read above them already."""
    count = len(commonprefix([above, visible_text("".join(lines))]))  # noqa: RUF071 (no paths)
    if not count:
        return lines
    for at, line in enumerate(lines):
        here = len(visible_text(line))
        if here >= count:
            rest = [_cut_line(line, count)] if here > count else []
            return strip_blank_lines(rest + lines[at + 1 :])
        count -= here
    return []


def _cut_line(line: str, count: int) -> str:
    """A line less so many characters of its ink; its colours stay."""
    kept = ""
    for piece in PIECE.findall(line):
        if re.match(COLOUR, piece) or not count:
            kept += piece
        else:
            count -= bool(visible_text(piece))
    return MARGIN.sub(r"\1", kept, count=1) if MARGIN.match(kept) else kept
