"""Columns of parquet files."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import OptionError
from ._files import MOST_BYTES, MOST_ROWS, extra, printable, reading

# A few kilobytes of dictionary can stand for any number of long rows: few are unpacked at a time.
_BATCH = 8


class Column(NamedTuple):
    """A column by its name, or by one of several; an image is a struct with encoded `bytes`."""

    names: tuple[str, ...]
    kind: Literal["text", "integers", "images"]


def read_parquet(path: Path, option: str, *columns: Column) -> list[list[Any]]:
    """The values of every column: str, int or bytes.

    Raises `OptionError` if the file is damaged, has no such columns, or unpacks to more than
    `MOST_ROWS` rows or `MOST_BYTES` bytes.
    """
    parquet = extra("pyarrow.parquet", option, f"{path.name}, a parquet file,")
    values: list[list[Any]] = [[] for _ in columns]
    with reading(option, str(path)):
        file = parquet.ParquetFile(path, pre_buffer=False)
        names = [_find(file.schema_arrow, column, path, option) for column in columns]
        leaves = [
            f"{name}.bytes" if column.kind == "images" else name
            for name, column in zip(names, columns, strict=True)
        ]
        _check_size(file.metadata.num_rows, _unpacked(file.metadata, leaves), path, option)
        size = 0
        for batch in file.iter_batches(batch_size=_BATCH, columns=leaves, use_threads=False):
            size += batch.nbytes
            _check_size(len(values[0]), size, path, option)
            for held, name, column in zip(values, names, columns, strict=True):
                array = batch.column(name)
                held += (array.flatten()[0] if column.kind == "images" else array).to_pylist()
    for held, name in zip(values, names, strict=True):
        if None in held:
            raise OptionError(
                option, f"{path}: column '{name}' has no value in row {held.index(None)}"
            )
    return values


def _find(schema: Any, column: Column, path: Path, option: str) -> str:
    """The column's name in the file."""
    name = next((name for name in column.names if name in schema.names), None)
    if name is None:
        there = printable(", ".join(schema.names)) or "none"
        wanted = " or ".join(f"'{name}'" for name in column.names)
        raise OptionError(option, f"{path}: no column {wanted}, it has {there}")
    if schema.names.count(name) > 1:
        raise OptionError(option, f"{path}: several columns '{name}'")
    kind = schema.field(name).type
    if not _holds(kind, column.kind):
        message = f"column '{name}' must hold {column.kind}, holds {printable(str(kind))}"
        raise OptionError(option, f"{path}: {message}")
    return name


def _holds(kind: Any, wanted: str) -> bool:
    import pyarrow.types as types

    if wanted == "images":
        named = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return named and any(
            f(kind.field("bytes").type) for f in (types.is_binary, types.is_large_binary)
        )
    if wanted == "integers":
        return types.is_integer(kind)
    return types.is_string(kind) or types.is_large_string(kind)


def _unpacked(metadata: Any, leaves: list[str]) -> int:
    """Bytes of the pages of these columns, by the file's own account."""
    chunks = (
        metadata.row_group(i).column(j)
        for i in range(metadata.num_row_groups)
        for j in range(metadata.num_columns)
    )
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in leaves)


def _check_size(rows: int, size: int, path: Path, option: str) -> None:
    if rows > MOST_ROWS:
        raise OptionError(option, f"{path}: more than {MOST_ROWS} rows")
    if size > MOST_BYTES:
        raise OptionError(option, f"{path}: unpacks to more than {MOST_BYTES >> 20} MiB")
