"""Embeddings that others made, as rows: clip-retrieval's folders, NumPy arrays with ids beside them, Parquet of all kinds, Hugging Face datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa

from imgcurate import identity, storage, vectors
from imgcurate.cluster import backend
from imgcurate.printable import printable, quoted
from imgcurate.schema import to_pandas
from imgcurate.sources import arrays
from imgcurate.sources.pieces import TEXT, Piece, find_vectors, pieces_of_arrays, pieces_of_table

#: What others call ids, in the order in which they are looked for.
_IDS = ("image_id", "id", "image_path", "key", "__key__", "path", "filepath", "filename", "file_name", "uuid")


class Layout(NamedTuple):
    """What the files hold, by the first of them.

    Attributes
    ----------
    id_field : str
    vectors : list of str
        The column of vectors, or the numbered columns; none in a ``.npy`` file.
    others : pyarrow.Schema
        The ids, as ``image_id``, and what else is kept.
    """

    id_field: str
    vectors: list[str]
    others: pa.Schema


def read_embeddings(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    ids: Any = None,
    id_field: str | None = None,
    embedding_field: str | None = None,
    storage_options: storage.Options = None,
) -> Any:
    """Read embeddings that other tools wrote as a Dask dataframe, which all verbs take that work on vectors.

    Parameters
    ----------
    path : str, path, or list of these
        - The folder that clip-retrieval writes (or its ``img_emb``): ``img_emb/img_emb_*.npy`` with ``metadata/metadata_*.parquet``.
        - ``.npy`` files of shape (images, dimension) with a file of ids beside each, of the same name: ``x.parquet``, ``x_ids.npy``, ``x.ids.npy`` or
          ``x.txt`` (an id a line), or beside the only one ``ids.npy``, ``ids.txt`` or ``ids.parquet``; or with `ids`.
        - Parquet with lists of numbers, or wide: a column for each element of the vectors, as ``emb_0`` to ``emb_511``.
        - A folder that Hugging Face's ``Dataset.save_to_disk`` wrote, or its Parquet.
    ids : sequence of str or int, or path, optional
        Of the vectors of ``.npy`` files, in order, or the file that holds them.
    id_field : str, optional
        The column of ids. Default: the first there is of ``image_id``, ``id``, ``image_path``, ``key``, ``__key__``, ``path``, ``filepath``,
        ``filename``, ``file_name`` and ``uuid``; else the index that pandas wrote.
    embedding_field : str, optional
        The column of vectors, or what the names of its numbered columns begin with. Default: ``embedding``, the only column of lists of numbers,
        or the longest run of at least eight numbered columns of numbers.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy, a partition a file (several of one above 128 MiB): ``image_id``, ``embedding`` (list of float32, as stored, not scaled) and the other
        columns of numbers, texts and times; not those of bytes, lists or structures.

    Raises
    ------
    FileNotFoundError
        Where there is no such file, or no ids beside an array.
    KeyError
        Where a column that is named is not there.
    ValueError
        Where it is not clear which column holds ids or vectors, or, when rows are computed, a file is damaged or has not as many ids as vectors.

    Notes
    -----
    Lists of uint16 are taken for the bits of float16, as writers without half precision store them. No pickle is loaded.

    Examples
    --------
    >>> frame = read_embeddings("laion/clip-retrieval-output")  # doctest: +SKIP
    >>> found = semantic_duplicates(frame)  # doctest: +SKIP
    """
    files = find_vectors(path, storage_options)
    npy = [url for url in files if url.lower().endswith(".npy")]
    if npy:
        if embedding_field is not None:
            raise ValueError(
                f"embedding_field={embedding_field!r} names a column, and {printable(npy[0])} is an array; leave it out"
            )
        pieces = list(pieces_of_arrays(npy, files, ids, storage_options))
        layout = _layout_beside(pieces[0], id_field, storage_options)
    elif ids is not None:
        raise ValueError("ids= are those of .npy files; of a table name the column that holds them: id_field=")
    else:
        pieces = [piece for url, entry in files.items() for piece in pieces_of_table(url, entry, storage_options)]
        layout = _layout(pieces[0].url, id_field, embedding_field, storage_options)
    frame = dd.from_map(
        read_piece,
        pieces,
        layout=layout,
        storage_options=storage_options,
        meta=_part(layout.others.empty_table(), np.zeros((0, 0), np.float32), np.zeros(0, bool), None),
        label="read-embeddings",
        enforce_metadata=False,
    )
    return vectors.to_backend(frame, backend())


def made_by(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], storage_options: storage.Options = None
) -> identity.Identity | None:
    """Return the encoder that the first of the files that `read_embeddings` reads names; None where it names none."""
    url = next(iter(find_vectors(path, storage_options)))
    if url.lower().endswith(".npy"):
        return None
    schema = arrays.read_schema(url, storage_options)
    of_columns = (identity.of_type(field.type) for field in schema)
    return next(filter(None, of_columns), None) or identity.from_metadata(schema.metadata)


def read_piece(
    piece: Piece, layout: Layout, columns: Sequence[str] | None = None, storage_options: storage.Options = None
) -> pd.DataFrame:
    """Read one partition: what `read_embeddings` runs on the workers."""
    # The ids in any case, for without a column a table has no length.
    names = [name for name in layout.others.names if columns is None or name in columns or name == "image_id"]
    wanted = pa.schema([layout.others.field(name) for name in names])
    stored = [layout.id_field if name == "image_id" else name for name in names]
    no_vectors = columns is not None and "embedding" not in columns
    encoder = None
    if piece.ids is None:
        needed = stored if no_vectors else [*stored, *layout.vectors]
        table = arrays.read_table(piece.url, piece.start, piece.stop, needed, storage_options)
        _refuse_missing(table, [] if no_vectors else layout.vectors, piece.url)
        if not no_vectors:
            matrix, valid = arrays.to_matrix(table, layout.vectors)
            encoder = _encoder(table, layout.vectors)
    else:
        table = _read_beside(piece, stored, layout, storage_options)
        if not no_vectors:
            matrix = arrays.read_matrix(piece.url, piece.start, piece.stop, storage_options)
            valid = np.ones(len(matrix), dtype=bool)
            if len(table) != len(matrix):
                raise ValueError(
                    f"{printable(piece.url)} holds {len(matrix):,} vectors, and there are {len(table):,} ids of them"
                )
    table = _fit(table, layout.id_field, wanted, piece.url)
    part = to_pandas(table) if no_vectors else _part(table, matrix, valid, encoder)
    return part if columns is None else part[list(columns)]


def _layout(url: str, id_field: str | None, embedding_field: str | None, storage_options: storage.Options) -> Layout:
    """Say what a table holds."""
    schema = arrays.read_schema(url, storage_options)
    columns = arrays.vector_columns(schema, embedding_field, url)
    return _layout_of(schema, columns, id_field, url)


def _layout_beside(piece: Piece, id_field: str | None, storage_options: storage.Options) -> Layout:
    """Say what lies beside an array."""
    if isinstance(piece.ids, str) and arrays.is_parquet(piece.ids):
        schema = arrays.read_schema(piece.ids, storage_options)
        return _layout_of(schema, [], id_field or (schema.names[0] if len(schema) == 1 else None), piece.ids)
    kind = _read_ids(piece, storage_options).type
    return Layout("image_id", [], pa.schema([("image_id", kind)]))


def _layout_of(schema: pa.Schema, columns: list[str], id_field: str | None, url: str) -> Layout:
    name = id_field or next((name for name in _IDS if name in schema.names), arrays.index_column(schema.metadata))
    if name is None:
        others = [name for name in schema.names if name not in columns]
        raise ValueError(
            f"{printable(url)} has no column that is known to hold ids: name it as id_field=; it has {quoted(others, 20) or 'no other'}"
        )
    if name not in schema.names:
        raise KeyError(f"{printable(url)} has no column {name!r}; it has {quoted(schema.names, 20)}")
    left_out = {name, *columns, "image_id", "embedding"}
    fields = [pa.field("image_id", _plain(schema.field(name).type))]
    fields += [
        field.with_type(_plain(field.type)).remove_metadata()
        for field in schema
        if field.name not in left_out and _is_flat(field.type)
    ]
    return Layout(name, columns, pa.schema(fields))


def _read_beside(piece: Piece, stored: Sequence[str], layout: Layout, storage_options: storage.Options) -> pa.Table:
    """Return the ids of a piece of an array, and what stands beside them."""
    if isinstance(piece.ids, str) and arrays.is_parquet(piece.ids):
        table = arrays.read_table(piece.ids, 0, None, [*stored, layout.id_field], storage_options)
    else:
        table = pa.table({"image_id": _read_ids(piece, storage_options)})
        if isinstance(piece.ids, np.ndarray):
            return table
    return table.slice(piece.start, None if piece.stop is None else piece.stop - piece.start)


def _read_ids(piece: Piece, storage_options: storage.Options) -> pa.Array:
    if isinstance(piece.ids, np.ndarray):
        return pa.array(piece.ids)
    assert piece.ids is not None
    if piece.ids.lower().endswith(TEXT):
        text = (storage.read_if_there(piece.ids, storage_options) or b"").decode("utf-8")
        return pa.array(text.splitlines(), pa.string())
    found = arrays.read_rows(piece.ids, 0, None, storage_options)
    if found.ndim != 1:
        raise ValueError(f"{printable(piece.ids)} holds an array of shape {found.shape}, not one id an image")
    return pa.array(found.astype(object) if found.dtype.kind == "U" else found)


def _fit(table: pa.Table, id_field: str, wanted: pa.Schema, url: str) -> pa.Table:
    """Return the columns of `wanted` in its types: files of one tool may differ in what they hold."""
    columns = {}
    for field in wanted:
        name = id_field if field.name == "image_id" else field.name
        if field.name == "image_id":
            _refuse_missing(table, [name], url)
        column = table[name] if name in table.column_names else pa.nulls(len(table), field.type)
        try:
            columns[field.name] = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as problem:
            raise ValueError(
                f"{printable(url)}: column {name!r} is not the {field.type} of the first file: {printable(str(problem))}"
            ) from None
    return pa.table(columns, schema=wanted)


def _part(table: pa.Table, matrix: np.ndarray, valid: np.ndarray, encoder: identity.Identity | None) -> pd.DataFrame:
    part = to_pandas(table)
    part.insert(1, "embedding", vectors.to_column(matrix, like=part, valid=valid, encoder=encoder))
    return part


def _encoder(table: pa.Table, columns: Sequence[str]) -> identity.Identity | None:
    of_column = identity.of_column(table[columns[0]]) if len(columns) == 1 else frozenset()
    return next(iter(of_column), None) or identity.from_metadata(table.schema.metadata)


def _refuse_missing(table: pa.Table, columns: Sequence[str], url: str) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{printable(url)} has no column {missing[0]!r}, as the first file has; read files of one kind at a time"
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column is given: of texts one, and of nothing but nulls, too."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)
    return pa.string() if is_text else kind


def _is_flat(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return not (pa.types.is_nested(kind) or is_bytes or isinstance(kind, pa.BaseExtensionType))
