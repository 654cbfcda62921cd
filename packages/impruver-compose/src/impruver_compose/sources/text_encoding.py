"""Text in whatever Unicode encoding its first bytes tell (UTF-8, UTF-16, UTF-32, with or without BOM), as UTF-8."""

from __future__ import annotations

import io
import json
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.compression import BLOCK, BROKEN, build_read_error, open_compressed

UTF8 = ("utf-8", "utf-8-sig")


def detect_encoding(file: io.BufferedReader) -> str:
    """Detects the encoding by BOM, else by where zero bytes stand among the first four, as ASCII characters have them.

    Nothing is taken from `file`. What is no Unicode text is "utf-8" and fails where it is decoded.
    """
    return json.detect_encoding(file.peek(4)[:4])


def open_text(path: Path) -> io.TextIOWrapper:
    """Opens a text file, which may be compressed, in the encoding that it has; line ends stay as they are."""
    file = open_compressed(path)
    try:
        encoding = detect_encoding(file)
        return io.TextIOWrapper(file, encoding="utf-8-sig" if encoding in UTF8 else encoding, newline="")
    except BROKEN as error:
        file.close()
        raise build_read_error(str(path), error) from None


def find_encoding(path: Path) -> str:
    """Detects the encoding of a file, which may be compressed."""
    try:
        with open_compressed(path) as file:
            return detect_encoding(file)
    except BROKEN as error:
        raise build_read_error(str(path), error) from None


def write_as_utf8(path: Path, target: Path) -> Path:
    """Writes the text of a file, which may be compressed, as UTF-8 into `target`, unless that is there."""
    if not target.exists():
        try:
            with open_text(path) as text, atomic_write(target) as file:
                while piece := text.read(BLOCK):
                    file.write(piece)
        except UnicodeDecodeError as error:
            raise build_encoding_error(path, error) from None
        except BROKEN as error:
            raise build_read_error(str(path), error) from None
    return target


def build_encoding_error(path: Path, error: UnicodeDecodeError) -> ImpruverError:
    """What to raise for a file that is not in the encoding that its first bytes tell; of UTF-8 it names the line."""
    if error.encoding.startswith("utf-8"):
        with open_compressed(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as found:
                    place = f"{path}, line {number}"
                    return ImpruverError(
                        f"{place}: not UTF-8 (byte {found.start + 1} of the line); save the file as UTF-8"
                    )
    return ImpruverError(f"{path}: not {error.encoding.upper()}, as it begins; save the file as UTF-8")
