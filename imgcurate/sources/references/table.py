"""Rows of a Parquet file: which they are, their columns in the types of a row, and their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcurate import schema, storage, tar
from imgcurate.printable import printable, quoted

#: What the name of such a file ends in.
EXTENSIONS = (".parquet", ".pq")


class References(NamedTuple):
    """Rows of a Parquet file that follow one another.

    Attributes
    ----------
    url, etag : str
        Of the file.
    first, rows : int
        The number of the first row in the file, and how many there are.
    groups : (int, int)
        The row groups that hold them.
    skipped : int
        Rows of these groups before the first.
    places : tuple of str
        Of the files that the rows name each tar, and of others one of each folder.
    roots : tuple of str or None
        As for `list_references`.
    """

    url: str
    etag: str
    first: int
    rows: int
    groups: tuple[int, int]
    skipped: int
    places: tuple[str, ...] = ()
    roots: tuple[str, ...] | None = None


def read(references: References, names: Sequence[str], storage_options: storage.Options) -> pa.Table:
    """Return those of the columns `names` that there are, in the types of a row."""
    url = references.url
    try:
        with storage.open_input(url, storage_options) as file:
            content = pq.ParquetFile(file, page_checksum_verification=True)
            today = schema.today(content.schema_arrow.names)
            wanted = [name for name in content.schema_arrow.names if today.get(name, name) in names]
            table = content.read_row_groups(range(*references.groups), wanted)
        table = table.slice(references.skipped, references.rows)
        columns = {today.get(name, name): _typed(table[name], today.get(name, name)) for name in wanted}
    except (pa.ArrowException, OSError) as problem:
        raise unreadable(url, problem) from None
    return pa.table(columns)


def _typed(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return a column in the type of a row; a number that is none of bytes is null."""
    kind = schema.TYPES[name]
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.equal(pc.floor(column), column), column, pa.scalar(None, column.type))
    made = column.cast(kind, safe=pa.types.is_string(kind))
    made.validate(full=True)  # text of strangers may be no UTF-8
    return made


def check_columns(url: str, found: pa.Schema) -> None:
    """Raise where a file has no column ``url``, or one of a row's columns holds something else; names file and column."""
    today = schema.today(found.names)
    names = [today.get(name, name) for name in found.names]
    if "url" not in names:
        raise ValueError(
            f"{printable(url)} has no column 'url', which says where each image lies; it has {quoted(names, 12)}"
        )
    for name, field in zip(names, found, strict=True):
        if name not in schema.SOURCE_COLUMNS:
            continue
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        fits = text if pa.types.is_string(schema.TYPES[name]) else number
        if names.count(name) > 1 or not (
            fits or pa.types.is_null(kind) or (name == "image_id" and pa.types.is_integer(kind))
        ):
            raise ValueError(
                f"{printable(url)}: column {name!r} holds {field.type} where a row has {schema.TYPES[name]}; rename or convert it"
            )


def unreadable(url: str, problem: Exception) -> Exception:
    """Return what is raised where a file is no Parquet, or damaged; what a disk or a store says, as it is."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem
    return ValueError(f"{printable(url)} cannot be read as Parquet ({printable(str(problem))}): write it again")


def ids_of(table: pa.Table) -> pa.ChunkedArray:
    """Return the id of each row; null where there is none."""
    if "image_id" in table.column_names:
        return table["image_id"]
    members = table["member"].to_pylist() if "member" in table.column_names else [None] * len(table)
    ids = [
        None if url is None else _id(url, member) for url, member in zip(table["url"].to_pylist(), members, strict=True)
    ]
    return pa.chunked_array([pa.array(ids, pa.string())])


def _id(url: str, member: str | None) -> str:
    """Return the id of a row that has none.

    Examples
    --------
    >>> _id("/photos/cat.jpg", None), _id("s3://bucket/0.tar", "cat.left.jpg")
    ('photos/cat.jpg', 's3/bucket/0/cat')
    """
    path = storage.relative(url, "").replace("://", "/")
    if member is None:
        return path
    key = tar.split_name(member)
    return f"{path.removesuffix('.tar')}/{member if key is None else key[0]}"


def is_relative(url: str) -> bool:
    """Tell whether a row's URL is a path that means another file wherever one starts from."""
    path = storage.path_of(url)
    return storage.is_local(path) and not path.startswith("/")
