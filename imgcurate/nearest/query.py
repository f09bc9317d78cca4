"""search(): the images that are nearest to a text, to an image, or to vectors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import identity, schema, storage
from imgcurate import vectors as matrices
from imgcurate.arguments import check_whole_number
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.dataframes.ids import arrow_id_dtype, id_dtype, plain_ids
from imgcurate.dedup.semantic import corpus, normalise
from imgcurate.encoders import load_text_encoder
from imgcurate.encoders.embed import embed
from imgcurate.encoders.text import check_texts
from imgcurate.nearest import compare
from imgcurate.nearest.lists import by_id_where_equal
from imgcurate.sources.files import read_files

_MERGED, _MODEL = 16, "openai/clip-vit-large-patch14"


@interruptible
def search(
    frame: Any,
    k: int = 10,
    *,
    text: str | Sequence[str] | None = None,
    image: storage.Paths | None = None,
    vectors: Any = None,
    model: str | os.PathLike[str] | None = None,
    probes: int = 16,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    model_dir: str | os.PathLike[str] | None = None,
    storage_options: storage.Options = None,
) -> pd.DataFrame:
    """Find the `k` images whose embeddings are nearest to that of a text, of an image, or to vectors. Eager.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame, pair of ids and a matrix of shape (n, d), or path
        With `id_field` and `embedding_field`, all of which is compared; or a folder that `save_embeddings` wrote, of which only the clusters are
        read that are nearest to what is looked for.
    k : int
    text : str or sequence of str, optional
        Of this, `image` and `vectors` one is given.
    image : str, path, or list of these, optional
        Image files, folders or globs, as for `read_files`.
    vectors : array of shape (d,) or (q, d), or column of embeddings, optional
        They are scaled to unit length. Of a column, such as ``rows["embedding"]`` of some rows in memory, it is known which model made it.
    model : str or path, optional
        What made the embeddings; it makes those of `text` and `image`. Default: of a folder what its embeddings say themselves, else
        ``"openai/clip-vit-large-patch14"``, which `embed` takes.
    probes : int
        Of a folder: how many clusters are looked at for each query. As many as there are look at all.
    id_field, embedding_field : str
    model_dir : str or path, optional
        As for `embed`.
    storage_options : dict, optional
        For the fsspec filesystem of a folder.

    Returns
    -------
    pandas.DataFrame
        ``query`` (the text, the image's id or the vector's number), the id, and ``similarity`` (the cosine, float32): query by query in the order
        given, the nearest first, of equally near ones the lowest id.

    Raises
    ------
    KeyError, TypeError
        As `semantic_duplicates` does.
    FileNotFoundError
        Where there is no such folder, image or model.
    ValueError
        Where not one of `text`, `image` and `vectors` is given, an option is out of range, a vector has no direction, an image cannot be used, or the
        embeddings were made by another model.

    Notes
    -----
    One pass over the frame, of which a task holds a partition, and brings back `k` rows a query.

    Examples
    --------
    >>> matrix = np.array([[1, 0], [0, 1], [0.8, 0.6]], dtype=np.float32)
    >>> search((["a", "b", "c"], matrix), k=2, vectors=[1, 0.1])
       query image_id  similarity
    0      0        a    0.995037
    1      0        c    0.855732

    >>> search(frame, text="a red bicycle")  # doctest: +SKIP
    """
    for name, value in (("k", k), ("probes", probes)):
        check_whole_number(name, value)
    if sum(given is not None for given in (text, image, vectors)) != 1:
        raise ValueError("search looks for one of text=, image= and vectors=: give one of them")
    inputs.refuse_name(id_field, "search", ("query", "similarity"))
    saved = corpus.saved_corpus(frame, id_field, storage_options) if isinstance(frame, str | os.PathLike) else None
    rows: Any = None if saved else inputs.as_frame(frame, "search", id_field, embedding_field).frame
    if model is None:
        named = identity.one(saved.encoders, "the folder") if saved else None
        model = named.name if named else _MODEL
    if text is not None:
        names, wanted, encoder = _of_texts([text] if isinstance(text, str) else text, model, model_dir)
    elif image is not None:
        names, wanted, encoder = _of_images(image, model, model_dir)
    else:
        names, wanted, encoder = _of_vectors(vectors)
    known = frozenset([encoder] if encoder else [])
    if saved is not None:
        identity.one(saved.encoders | known, "the search")
        _refuse_other_dimension(wanted, saved.centroids.shape[1])
        found = _in_folder(saved, wanted, int(k), probes, id_field, storage_options)
    else:
        of_part = dask.delayed(_of_part)
        columns = [id_field, embedding_field, *(["error"] if "error" in rows.columns else [])]
        found = [of_part(part, wanted, int(k), id_field, embedding_field, known) for part in rows[columns].to_delayed()]
    while len(found) > 1:
        found = [dask.delayed(_best)(found[at : at + _MERGED], int(k)) for at in range(0, len(found), _MERGED)]
    table = found[0].compute() if found else _table(np.zeros(0, np.int64), pa.nulls(0), np.zeros(0, np.float32))
    part = schema.to_pandas(table.rename_columns(["query", id_field, "similarity"]))
    part["query"] = pd.Series(names)[part["query"].to_numpy()].to_numpy()
    # Of a folder the type of the ids is known from the rows that were read.
    ids = arrow_id_dtype(table["id"].type) if saved is not None else id_dtype(rows._meta[id_field])
    return part.astype({id_field: ids})


def _of_texts(texts: Any, model: Any, model_dir: Any) -> tuple[list[Any], np.ndarray, identity.Identity | None]:
    texts = check_texts(texts, "text")
    encoder = load_text_encoder(model, model_dir=model_dir)
    return texts, encoder.encode(texts).vectors.cpu().numpy(), encoder.identity


def _of_images(paths: Any, model: Any, model_dir: Any) -> tuple[list[Any], np.ndarray, identity.Identity | None]:
    made = embed(read_files(paths), model, model_dir=model_dir).compute()
    wrong = made[made["error"].notna()]
    if len(wrong):
        raise ValueError(f"the image {wrong['image_id'].iloc[0]!r} cannot be looked for: {wrong['error'].iloc[0]}")
    encoder = identity.one(identity.of_column(made["embedding"]), "the images")
    return made["image_id"].tolist(), matrices.to_matrix(made["embedding"]), encoder


def _of_vectors(given: Any) -> tuple[list[Any], np.ndarray, identity.Identity | None]:
    encoder = None
    if _is_embeddings(given):
        encoder = identity.one(identity.of_column(given), "vectors")
        given = matrices.to_matrix(given)
    try:
        matrix = matrices.to_numpy(given)
    except ValueError:  # rows of several lengths
        matrix = np.array(list(given), dtype=object)
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or not matrix.shape[1] or matrix.dtype.kind not in "fiu":
        raise TypeError(
            f"vectors holds {matrix.dtype} of shape {matrix.shape}, not numbers of shape (queries, dimension)"
        )
    unit, valid = matrices.unit_rows(matrix)
    if not valid.all():
        raise ValueError(f"vector {np.flatnonzero(~valid)[0]} of vectors is zero or not finite and has no direction")
    return list(range(len(unit))), unit, encoder


def _is_embeddings(given: Any) -> bool:
    """Tell whether something is a pandas or cuDF column of lists, and not one of numbers, which is a single vector."""
    is_column = isinstance(given, pd.Series) or (matrices.on_gpu(given) and hasattr(given, "index"))
    return is_column and getattr(given.dtype, "kind", "O") not in "fiu"


def _in_folder(
    saved: corpus.SavedCorpus, wanted: np.ndarray, k: int, probes: int, id_field: str, storage_options: storage.Options
) -> list[Any]:
    # In float64, so that rounding, which depends on the machine, leaves the order as it is.
    farness = -(wanted.astype(np.float64) @ saved.centroids.T.astype(np.float64))
    near = np.argsort(farness, axis=1, kind="stable")[:, :probes]
    task = dask.delayed(_of_file)
    touched = [(part, np.flatnonzero((near == part.cluster).any(axis=1))) for part in saved.parts if part.rows]
    return [task(part, rows, wanted[rows], k, id_field, storage_options) for part, rows in touched if len(rows)]


def _of_part(
    part: Any, wanted: np.ndarray, k: int, id_field: str, embedding_field: str, encoders: frozenset[identity.Identity]
) -> pa.Table:
    rows, summary, _, _ = normalise.prepare(part, id_field, embedding_field, [], 0)
    identity.one(summary.encoders | encoders, "the search")
    if summary.n_compared:
        _refuse_other_dimension(wanted, summary.dimension)
    return _nearest(np.arange(len(wanted)), wanted, rows.table["id"].combine_chunks(), rows.vectors, k)


def _of_file(
    part: corpus.Part, queries: np.ndarray, wanted: np.ndarray, k: int, id_field: str, storage_options: storage.Options
) -> pa.Table:
    ids, matrix = corpus.read_part(part, id_field, storage_options)
    _refuse_other_dimension(wanted, matrix.shape[1])
    return _nearest(queries, wanted, plain_ids(ids, id_field), matrix, k)


def _nearest(queries: np.ndarray, wanted: np.ndarray, ids: pa.Array, matrix: Any, k: int) -> pa.Table:
    """Return the `k` nearest of some rows to each query."""
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    found = compare.nearest(matrices.namespace(matrix).asarray(wanted), matrices.take(matrix, order), k)
    return _table(queries[found.row], ids.take(pa.array(order[found.other])), found.similarity)


def _best(tables: Sequence[pa.Table], k: int) -> pa.Table:
    table = pa.concat_tables(tables, promote_options="permissive")
    query, similarity = table["query"].to_numpy(), table["similarity"].to_numpy()
    order = by_id_where_equal(query, similarity, table["id"].combine_chunks())
    return table.take(pa.array(order[compare.best(query[order], similarity[order], k)]))


def _table(query: np.ndarray, ids: pa.Array, similarity: np.ndarray) -> pa.Table:
    return pa.table({"query": query, "id": ids, "similarity": similarity})


def _refuse_other_dimension(wanted: np.ndarray, dimension: int) -> None:
    if wanted.shape[1] != dimension:
        raise ValueError(
            f"what is looked for has dimension {wanted.shape[1]}, the embeddings {dimension}; give the model that made them, or vectors of it"
        )
