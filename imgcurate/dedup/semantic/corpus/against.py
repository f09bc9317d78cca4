"""What new images are compared with: a frame in full, or of what was saved the clusters that they go to."""

from __future__ import annotations

import os
from typing import Any

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import identity, storage, vectors
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.dataframes.ids import plain_ids
from imgcurate.dedup.graph import build
from imgcurate.dedup.graph.found import Found
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic import normalise
from imgcurate.dedup.semantic.clusters import compare
from imgcurate.dedup.semantic.clusters.exchange import Members
from imgcurate.dedup.semantic.clusters.files import StoredBucket
from imgcurate.dedup.semantic.corpus import files
from imgcurate.dedup.semantic.corpus.files import Part
from imgcurate.dedup.semantic.steps import by_cluster

_ROWS_OF_A_TASK = 32_768


def open_corpus(against: Any, id_field: str, embedding_field: str) -> FrameCorpus | SavedCorpus:
    """Return what `semantic_duplicates` compares new images with."""
    if isinstance(against, str | os.PathLike):
        return saved_corpus(against, id_field, None)
    of = " (in the frame given as against)"
    against, _ = inputs.as_frame(against, "semantic_duplicates", id_field, embedding_field, where=of)
    return FrameCorpus(against, id_field, embedding_field)


class FrameCorpus:
    """A frame: read once, and compared in full."""

    centroids: None = None

    def __init__(self, frame: Any, id_field: str, embedding_field: str) -> None:
        self._frame, self._id_field, self._embedding_field = frame, id_field, embedding_field

    def compare(self, new: frames.Frame, probes: int, exact: bool, least: float) -> tuple[list[Delayed], build.Fixed]:
        """Return the pairs of a new image and one of the corpus, and how to name those of the corpus."""
        work = f"{new.folder.path}/against" if new.folder is not None and new.folder.durable else None
        old = frames.prepare(self._frame, self._id_field, self._embedding_field, [], 0, work)
        if old.n_compared:
            old.refuse_other_dimension(new.dimension, "the new images", self._embedding_field)
        identity.one(new.encoders | old.encoders, "the comparison with the corpus")
        task = dask.delayed(compare.compare_with_others)
        found = [
            task(rows, at, others, other_at + new.n_compared, least)
            for rows, at in _grouped(new)
            for others, other_at in _grouped(old)
        ]

        def fixed(wanted: Delayed) -> list[Delayed]:
            name = dask.delayed(_name_block)
            return [
                name(block, offset + new.n_compared, wanted)
                for block, offset in zip(old.blocks, old.offsets, strict=True)
            ]

        return list(dask.persist(*found)), fixed


class SavedCorpus:
    """What `save_embeddings` wrote: only the clusters are read that new images go to."""

    def __init__(self, saved: files.Saved, id_field: str, storage_options: storage.Options) -> None:
        self.centroids, self.parts, self.encoders = saved
        self._id_field, self._storage_options = id_field, storage_options

    def compare(self, new: frames.Frame, probes: int, exact: bool, least: float) -> tuple[list[Delayed], build.Fixed]:
        """Return the pairs of a new image and one of the corpus, and how to name those of the corpus."""
        identity.one(new.encoders | self.encoders, "the comparison with the corpus")
        # The images of the corpus lie in one cluster each, so the new ones are looked for in twice as many.
        width = len(self.centroids) if exact else 2 * probes
        sizes, clusters = by_cluster(new, self.centroids, width, least)
        touched = [part for part in self.parts if part.rows and sizes[part.cluster]]
        starts = np.cumsum([new.n_compared, *(part.rows for part in touched)])[:-1].tolist()
        task = dask.delayed(_compare_with_part)
        bucket_of = {cluster.number: cluster.bucket for cluster in clusters}
        found = [
            task(bucket_of[part.cluster], part, start, least, self._storage_options)
            for part, start in zip(touched, starts, strict=True)
        ]

        def fixed(wanted: Delayed) -> list[Delayed]:
            name = dask.delayed(_name_part)
            return [
                name(part, start, wanted, self._id_field, self._storage_options)
                for part, start in zip(touched, starts, strict=True)
            ]

        return list(dask.persist(*found)), fixed


def saved_corpus(path: str | os.PathLike[str], id_field: str, storage_options: storage.Options) -> SavedCorpus:
    """Return what `save_embeddings` wrote to a folder."""
    return SavedCorpus(files.read(path, storage_options), id_field, storage_options)


def _grouped(rows: frames.Frame) -> list[tuple[Delayed, int]]:
    """Put small blocks together, because a comparison is a task for every two."""
    groups: list[tuple[list[Delayed], int, int]] = []
    ends = [*rows.offsets[1:], rows.n_compared]
    for block, start, end in zip(rows.blocks, rows.offsets, ends, strict=True):
        if groups and end - groups[-1][1] <= _ROWS_OF_A_TASK:
            groups[-1][0].append(block)
        else:
            groups.append(([block], start, end))
    return [(dask.delayed(normalise.stack)(group), start) for group, start, _ in groups]


def _compare_with_part(
    bucket: Members | StoredBucket, part: Part, start: int, least: float, storage_options: storage.Options
) -> Found:
    matrix = files.read_vectors(part, storage_options)
    # Of a bucket in files this cluster alone is read, and no ids.
    members = bucket if isinstance(bucket, Members) else bucket.only(part.cluster).members()
    others = vectors.namespace(members.vectors).asarray(matrix)
    return compare.compare_with_cluster(members, part.cluster, others, start, least)


def _name_block(block: normalise.Rows, offset: int, wanted: np.ndarray) -> pa.Table:
    start, stop = np.searchsorted(wanted, [offset, offset + len(block.vectors)])
    here = wanted[start:stop]
    return _named(block.table["id"].combine_chunks().take(pa.array(here - offset)), here, 0)


def _name_part(part: Part, start: int, wanted: np.ndarray, id_field: str, storage_options: storage.Options) -> pa.Table:
    here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + part.rows)]
    if not len(here):
        return _named(pa.nulls(0), here, part.cluster)
    ids = files.read_ids(part, id_field, storage_options)
    return _named(plain_ids(ids, id_field).take(pa.array(here - start)), here, part.cluster)


def _named(ids: Any, rows: np.ndarray, cluster: int) -> pa.Table:
    return pa.table({"id": ids, "row": rows, "cluster": pa.array(np.full(len(rows), cluster, dtype=np.int32))})
