"""Options for reading CSV files whose cells stay as they were written: 007 is no 7, None no null."""

from collections.abc import Sequence
from pathlib import Path

from impruver_core.errors import ImpruverError


def as_written(files: Sequence[Path], separator: str, where: str) -> dict:
    """Of the CSV loader of `datasets`; ImpruverError where pandas would shift or lose cells, saying nothing."""
    import datasets

    headers = [_header(path, separator, where) for path in files]
    for path, columns in zip(files, headers, strict=True):
        if set(columns) != set(headers[0]):
            raise ImpruverError(
                f"{where}: {path} has the columns {', '.join(columns)}, {files[0].name} has {', '.join(headers[0])}: "
                "name the files one by one"
            )
    texts = datasets.Features({name: datasets.Value("string") for name in headers[0]})
    return {"sep": separator, "features": texts, "keep_default_na": False, "encoding": "utf-8-sig"}


def _header(path: Path, separator: str, where: str) -> list[str]:
    """The columns of a file. A first row of more cells than these would shift: pandas takes its first for a name."""
    import pandas

    try:
        top = pandas.read_csv(path, sep=separator, nrows=1, dtype=str, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImpruverError(f"{where}: {path} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except (ValueError, OSError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImpruverError(f"{where}: {path} can't be read as csv: {told}") from None
    if not isinstance(top.index, pandas.RangeIndex):
        raise ImpruverError(f"{where}: {path}: the first row has more cells than the header has columns")
    return [str(name) for name in top.columns]
