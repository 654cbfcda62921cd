"""The opcodes of a pickle, one after the other, with their arguments.

As pickletools.genops has them, but quicker, and with names as the unpickler reads them: genops takes backslashes in
those of GLOBAL for escapes.
"""

import pickletools
from collections.abc import Iterator
from pickle import decode_long
from struct import Struct
from typing import Any

BYTE, SHORT, INT, UNSIGNED, QUAD, FLOAT = map(Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
PROTOCOLS = {opcode.name: opcode.proto for opcode in pickletools.opcodes}
NUMBERS = {
    **dict.fromkeys(("BININT1", "BINGET", "BINPUT", "PROTO"), BYTE),
    **dict.fromkeys(("LONG_BINGET", "LONG_BINPUT"), UNSIGNED),
    "BININT2": SHORT,
    "BININT": INT,
    "BINFLOAT": FLOAT,
    "FRAME": QUAD,
}
LENGTHS = {
    **dict.fromkeys(("SHORT_BINUNICODE", "SHORT_BINBYTES", "LONG1"), BYTE),
    **dict.fromkeys(("BINUNICODE", "BINBYTES"), UNSIGNED),
    "BINUNICODE8": QUAD,
}


def read_opcodes(data: bytes, start: int = 0) -> Iterator[tuple[str, Any, int]]:
    """(name, argument or None, where the next one begins) of each opcode up to STOP.

    Raises ValueError, IndexError or struct.error where `data` is broken or ends before. The arguments of opcodes that
    are in no checkpoint are not read.
    """
    at, name = start, ""
    while name != "STOP":
        name = NAMES[data[at]]
        at += 1
        argument = None
        if name in NUMBERS:
            (argument,) = NUMBERS[name].unpack_from(data, at)
            at += NUMBERS[name].size
        elif name in LENGTHS:
            (length,) = LENGTHS[name].unpack_from(data, at)
            at += LENGTHS[name].size
            argument = data[at : at + length]
            if len(argument) < length:
                raise ValueError("cut off")
            at += length
            if "UNICODE" in name:
                argument = argument.decode("utf-8", "surrogatepass")
            elif name == "LONG1":
                argument = decode_long(argument)
        elif name in ("GLOBAL", "INST"):
            middle = data.index(b"\n", at)
            end = data.index(b"\n", middle + 1)
            argument = (data[at:middle].decode(), data[middle + 1 : end].decode())
            at = end + 1
        yield name, argument, at
