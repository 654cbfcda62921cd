"""A file of torch.save: a zip archive of a pickle and the numbers of its tensors, none of which are read.

torch reads the archive with miniz. What two readers might take differently is refused: compressed records, records that
overlap, names that stand there twice, anything between the last record and the end.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any, BinaryIO, NamedTuple

from impruver_train.checkpointing.pickles.parsing import (
    LARGEST_PICKLE,
    Budget,
    Global,
    PickleError,
    Storage,
    parse_pickle,
)
from impruver_train.checkpointing.pickles.rules import STORAGE_BYTES, FindRule

MAGIC = b"PK\x03\x04"
LARGEST_DIRECTORY = 1 << 28
UNSAID, UNSAID_SHORT = 0xFFFFFFFF, 0xFFFF  # the value stands in the 64-bit fields
PLAIN_FLAGS = 0x0808  # names in UTF-8, and sizes that follow the data
# Appnote of PKWARE, sections 4.3.7 and 4.3.12 to 4.3.16.
LOCAL_HEADER = Struct("<4s5H3I2H")
DIRECTORY_HEADER = Struct("<4s6H3I5H2I")
END = Struct("<4s4H2IH")
LOCATOR = Struct("<4sIQI")
END_64 = Struct("<4sQ2H2I4Q")


class Record(NamedTuple):
    """Where a record begins and ends in the file, its header included, and the length of its content in bytes."""

    start: int
    end: int
    size: int


def parse_archive(file: BinaryIO, start: int, size: int, find_rule: FindRule, budget: Budget) -> Any:
    """The value that the archive at `start` describes; PickleError for one that torch.save does not write."""
    records = read_records(file, start, size, budget)
    if b"constants.pkl" in records:
        raise PickleError("is a TorchScript archive, which holds code")
    if b"data.pkl" not in records:
        raise PickleError("is no file of torch.save (it has no data.pkl)")
    pickled = records[b"data.pkl"]
    if pickled.size > LARGEST_PICKLE:
        raise PickleError(f"has a pickle of {pickled.size:,} bytes, more than a checkpoint's")
    content = read_at(file, find_content(file, pickled), pickled.size)
    return parse_pickle(content, find_rule, budget, make_storage_loader(records)).value


def read_records(file: BinaryIO, start: int, size: int, budget: Budget) -> dict[bytes, Record]:
    """The records of the archive in `size` bytes of a file, by name."""
    end = END.size
    if size < LOCAL_HEADER.size + end or read_at(file, start, 4) != MAGIC:
        raise PickleError("is no file of torch.save, or cut off")
    count, length, offset, limit = _read_end(file, start, size)
    if not count or offset + length != limit or length > LARGEST_DIRECTORY or count * DIRECTORY_HEADER.size > length:
        raise PickleError("is no archive as torch.save writes it")
    budget.spend(4 * count)
    directory = read_at(file, start + offset, length)
    headers, position = [], 0
    for _ in range(count):
        header, name, position = _read_header(directory, position)
        headers.append((header, name))
    folder, slash, _ = headers[0][1].partition(b"/")
    before = folder + slash
    if not slash or position != length or not all(name.startswith(before) for _, name in headers):
        raise PickleError("is no archive as torch.save writes it")
    if len({name.lower() for _, name in headers}) < count:
        raise PickleError("is no archive as torch.save writes it: a name stands there twice")
    headers.sort()
    ends = [header_at for (header_at, _), _ in headers[1:]] + [offset]
    records = {}
    for ((header_at, content), name), record_end in zip(headers, ends, strict=True):
        if header_at + LOCAL_HEADER.size + content > record_end:
            raise PickleError("is no archive as torch.save writes it: its records overlap")
        records[name.removeprefix(before)] = Record(start + header_at, start + record_end, content)
    return records


def find_content(file: BinaryIO, record: Record) -> int:
    """Where a record's content begins: behind a name and a filling, whose lengths stand in the file alone."""
    head = LOCAL_HEADER.unpack(read_at(file, record.start, LOCAL_HEADER.size))
    place = record.start + LOCAL_HEADER.size + head[9] + head[10]
    if head[0] != MAGIC or place + record.size > record.end:
        raise PickleError("is no archive as torch.save writes it: its records overlap")
    return place


def _read_end(file: BinaryIO, start: int, size: int) -> tuple[int, int, int, int]:
    """(number of records, the directory's length, where it begins, where it has to end) of an archive."""
    signature, *disks, count, length, offset, comment = END.unpack(read_at(file, start + size - END.size, END.size))
    limit = size - END.size
    if signature != b"PK\x05\x06" or comment or disks[:2] != [0, 0] or disks[2] != count:
        raise PickleError("is no archive as torch.save writes it, or cut off")
    if limit < LOCATOR.size + END_64.size:
        return count, length, offset, limit
    signature, _, wide_at, _ = LOCATOR.unpack(read_at(file, start + limit - LOCATOR.size, LOCATOR.size))
    if signature != b"PK\x06\x07":
        return count, length, offset, limit
    limit -= LOCATOR.size + END_64.size
    wide = END_64.unpack(read_at(file, start + limit, END_64.size))
    said = ((count, UNSAID_SHORT), (length, UNSAID), (offset, UNSAID))
    agree = all(value in (other, unsaid) for (value, unsaid), other in zip(said, wide[7:], strict=True))
    if wide_at != limit or wide[4:6] != (0, 0) or wide[0] != b"PK\x06\x06" or wide[6] != wide[7] or not agree:
        raise PickleError("is no archive as torch.save writes it")
    return *wide[7:], limit


def _read_header(directory: bytes, position: int) -> tuple[tuple[int, int], bytes, int]:
    """((where a record begins, its size), its name, where the next header is) from the directory."""
    names = position + DIRECTORY_HEADER.size
    if names > len(directory):
        raise PickleError("is no archive as torch.save writes it")
    fields = DIRECTORY_HEADER.unpack_from(directory, position)
    flags, method, (stored, size, name_size, extra_size, comment_size) = fields[3], fields[4], fields[8:13]
    name, following = directory[names : names + name_size], names + name_size + extra_size
    extra = directory[names + name_size : following]
    values = _read_wide_values([size, stored, fields[16]], extra)
    if fields[0] != b"PK\x01\x02" or flags & ~PLAIN_FLAGS or comment_size or following > len(directory):
        raise PickleError("is no archive as torch.save writes it")
    if method or values[0] != values[1]:
        raise PickleError("is no archive as torch.save writes it: it is compressed")
    return (values[2], values[0]), name, following


def _read_wide_values(values: list[int], extra: bytes) -> list[int]:
    """Size, stored size and place of a record, of which those that 32 bits can't hold stand in its extra fields."""
    if UNSAID not in values:
        return values
    if len(extra) < 4 or (extra[0], extra[1]) != (1, 0) or int.from_bytes(extra[2:4], "little") != len(extra) - 4:
        raise PickleError("is no archive as torch.save writes it")
    wide = iter(extra[at : at + 8] for at in range(4, len(extra), 8))
    return [int.from_bytes(next(wide, b""), "little") if value == UNSAID else value for value in values]


def read_at(file: BinaryIO, start: int, size: int) -> bytes:
    """Bytes of a file from `start` on; PickleError where it has not so many."""
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise PickleError("is cut off")
    return content


def make_storage_loader(records: dict[bytes, Record]) -> Callable[[Any], Storage]:
    """The function from a persistent id to the numbers that it stands for, which have to be in one of `records`.

    A record is read anew for each way in which it is named: there may be one.
    """
    known: dict[str, tuple] = {}

    def load_storage(identity: Any) -> Storage:
        word, kind, key, location, count = identity
        item_bytes = STORAGE_BYTES[kind.name] if type(kind) is Global else 0
        if (
            type(identity) is not tuple
            or word != "storage"
            or not item_bytes
            or type(key) is not str
            or type(location) is not str
        ):
            raise PickleError("names tensors in a way that torch.save does not")
        record = records.get(f"data/{key}".encode())
        if type(count) is not int or record is None or not 0 <= count * item_bytes <= record.size:
            raise PickleError("has a tensor that is larger than its data")
        if count and known.setdefault(key, (kind.name, count)) != (kind.name, count):
            raise PickleError("names one tensor's data in two ways")
        return Storage(item_bytes, count)

    return load_storage
