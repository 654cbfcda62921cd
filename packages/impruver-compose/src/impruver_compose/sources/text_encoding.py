"""Text in whatever Unicode encoding its first bytes tell (UTF-8, UTF-16, UTF-32, with or without BOM), as UTF-8."""

from __future__ import annotations

import io
import json
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.compression import BLOCK, BROKEN, build_read_error, open_compressed

UTF8 = ("utf-8", "utf-8-sig")


def find_encoding(path: Path) -> str:
    """Finds the encoding of a file, which may be compressed: by BOM, else by the zero bytes among its first four.

    What is no Unicode text is "utf-8" and fails where it is decoded.
    """
    try:
        with open_compressed(path) as file:
            return json.detect_encoding(file.read(4))  # which goes by ASCII characters
    except BROKEN as error:
        raise build_read_error(str(path), error) from None


def open_text(path: Path) -> io.TextIOWrapper:
    """Opens a text file, which may be compressed, in the encoding that it has; line ends stay as they are."""
    encoding = find_encoding(path)
    encoding = "utf-8-sig" if encoding in UTF8 else encoding
    return io.TextIOWrapper(open_compressed(path), encoding=encoding, newline="")


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
