"""Compressed files as streams of bytes: gzip, bzip2, xz, Zstandard, and a zip of one file; none unpacks without end."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

from impruver_core.errors import ImpruverError

COMPRESSED = (".gz", ".zst", ".xz", ".bz2", ".zip")
FREELY_UNPACKED, LARGEST_RATIO = 8 << 20, 200  # bytes that any file may unpack to, and how many times its size
BLOCK = 1 << 18  # bytes
BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error)  # what a compressed file may raise
LISTED = 3  # members of an archive that a message names
ZST_PIECE = 1 << 11  # bytes of a .zst that are unpacked at once: up to 32,768 times as many come of them
ZST_LEVEL = 3  # zstd's own default


def open_compressed(path: str | Path) -> io.BufferedReader:
    """The bytes of a file; a name that ends in .gz, .bz2, .xz, .zst or .zip is a compressed one.

    ImpruverError for a .zip that holds anything but one file.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in COMPRESSED:
        return open(path, "rb")
    if suffix == ".zip":
        unpacked = _open_zip(path)
    elif suffix == ".zst":
        check_zstandard(path)
        unpacked = _ZstFile(path)
    else:
        unpacked = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix](path, "rb")
    return io.BufferedReader(_Unpacked(path, unpacked), BLOCK)


def check_zstandard(where: str | Path) -> None:
    """ImpruverError, beginning with `where`, if the package for .zst is not installed."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        raise ImpruverError(f"{where}: .zst needs a further package: pip install zstandard") from None


def compress_zst(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Writes the `size` bytes of `source` as one Zstandard frame, with their number and checksum.

    The same bytes come of the same ones, with one version of zstd.
    """
    from zstandard import ZstdCompressor

    ZstdCompressor(level=ZST_LEVEL, write_checksum=True).copy_stream(source, target, size=size)


def read_zip_member(path: str | Path) -> str:
    """The name of the one file that a .zip holds; ImpruverError for any other archive."""
    with _read_zip(path) as archive:
        return _find_member(path, archive).filename


def _open_zip(path: str | Path) -> BinaryIO:
    archive = _read_zip(path)
    member = _find_member(path, archive)
    try:
        return archive.open(member)  # which keeps the archive's file open as long as it needs that
    except (RuntimeError, NotImplementedError) as error:  # encrypted; a method that Python does not have
        raise ImpruverError(f"{path} can't be unpacked ({error}): unpack it and name the file in it") from None
    except BadZipFile as error:
        raise ImpruverError(f"{path}: the compressed file is broken: {error}") from None


def _read_zip(path: str | Path) -> ZipFile:
    try:
        return ZipFile(path)
    except (BadZipFile, NotImplementedError, ValueError) as error:
        raise ImpruverError(f"{path}: the compressed file is broken: {error}") from None


def _find_member(path: str | Path, archive: ZipFile) -> ZipInfo:
    """The one file of an archive but for hidden ones; nothing is written under its name, which must be ordinary."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise ImpruverError(f"{path} names a file outside of it ({member.filename!r}), as no archive of data does")
    visible = [member for member in members if not is_hidden(member.filename)]
    if len(visible) != 1:
        names = ", ".join(member.filename for member in visible[:LISTED]) + (", …" if len(visible) > LISTED else "")
        holds = f"holds {len(visible)} files ({names})" if visible else "holds no file"
        raise ImpruverError(f"{path} {holds}, and a .zip is read that holds one: unpack it and name the folder")
    return visible[0]


def is_hidden(name: str) -> bool:
    """True for what systems and editors leave beside files: `._a.jsonl`, `~$a.csv`, `__MACOSX/…`, `.git/…`."""
    *folders, last = name.split("/")
    return last.startswith((".", "~$")) or any(folder.startswith((".", "__")) for folder in folders)


def build_read_error(where: str, error: Exception) -> Exception:
    """What to raise for one of BROKEN: the system's own as it is, else ImpruverError that names the file."""
    if getattr(error, "errno", None) is not None:
        return error
    return ImpruverError(f"{where}: the compressed file is broken: {error}")


def get_most_unpacked(path: str | Path) -> int:
    """The bytes that a file of data may unpack to."""
    return max(FREELY_UNPACKED, LARGEST_RATIO * os.path.getsize(path))


def build_size_error(path: str | Path) -> ImpruverError:
    """What to raise for a file that unpacks to more."""
    return ImpruverError(
        f"{path}: it unpacks to more than {LARGEST_RATIO} times its size, as no data does; if you trust it, unpack it "
        "and name that file"
    )


class _Unpacked(io.RawIOBase):
    """The bytes of a compressed file; ImpruverError where a small one unpacks to more than any data would."""

    def __init__(self, path: str | Path, file: BinaryIO):
        self.path, self.file, self.count = path, file, 0
        self.most = get_most_unpacked(path)

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        try:
            piece = self.file.read1(len(target))  # what there is before a broken place, too
        except BROKEN:
            raise
        except Exception as error:  # zstandard's own, which need not be installed; a zip's wrong checksum
            raise OSError(str(error)) from None
        target[: len(piece)] = piece
        self.count += len(piece)
        if self.count > self.most:
            raise build_size_error(self.path)
        return len(piece)

    def close(self) -> None:
        self.file.close()
        super().close()


class _ZstFile:
    """The bytes of all frames of a .zst; EOFError where it is cut off, which zstandard's own readers leave unsaid."""

    def __init__(self, path: str | Path):
        self.file, self.frame, self.rest = open(path, "rb"), None, b""  # noqa: SIM115
        self.unpacked = memoryview(b"")

    def read1(self, count: int) -> bytes:
        """Up to `count` bytes; none at the end."""
        while not self.unpacked:
            piece = self.rest or self.file.read(ZST_PIECE)
            if not piece:
                if self.frame is not None:
                    raise EOFError("it is cut off")
                return b""
            self._unpack(piece)
        piece, self.unpacked = bytes(self.unpacked[:count]), self.unpacked[count:]
        return piece

    def _unpack(self, piece: bytes) -> None:
        from zstandard import ZstdDecompressor

        if self.frame is None:
            self.frame = ZstdDecompressor().decompressobj()
        self.unpacked, self.rest = memoryview(self.frame.decompress(piece)), b""
        if self.frame.eof:
            self.frame, self.rest = None, self.frame.unused_data

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
