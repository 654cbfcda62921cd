"""Data sets loaded as compose loads them, without encoding them."""

from pathlib import Path

import pytest
from impruver_compose.sections import DatasetSection
from impruver_compose.sources.loading import load_dataset
from impruver_core.errors import ImpruverError
from support.jsonl import write_jsonl


@pytest.fixture
def load(tmp_path):
    """The rows of a data set; `content`: what its file is to hold, `keys`: others of its section."""

    def load(name: str, content: bytes | str | None = None, **keys) -> list[dict]:
        if content is not None:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        rows = load_dataset(DatasetSection(name=f"./{name}", **keys), "datasets.0", tmp_path, ()).rows
        return rows.read(0, len(rows))

    return load


@pytest.fixture
def load_error(load):
    """What is told of a data set that can't be loaded."""

    def load_error(*given, **keys) -> str:
        with pytest.raises(ImpruverError) as caught:
            load(*given, **keys)
        return str(caught.value)

    return load_error


@pytest.fixture
def plant(tmp_path):
    """Writes files below a folder with as many rows as said, each with the file's name and its number as `text`."""

    def plant(folder: str, files: dict[str, int], readme: str | None = None) -> Path:
        for name, count in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(path, [{"text": f"{name} {number}"} for number in range(count)])
        if readme is not None:
            (tmp_path / folder / "README.md").write_text(readme)
        return tmp_path / folder

    return plant


def write_rows(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    else:
        write_jsonl(path, rows)
