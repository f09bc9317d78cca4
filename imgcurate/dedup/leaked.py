"""Leaks: images of one split that are in another one, and what a person asks next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, storage
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes.outputs import lazily
from imgcurate.dedup.graph import across
from imgcurate.dedup.result.shown import OfImages
from imgcurate.printable import plural

if TYPE_CHECKING:
    from imgcurate.report.page import Page

#: What images are compared by, the strictest first.
KINDS = ("exact", "perceptual", "semantic")
_COLUMNS = ["id", "split", "duplicate_of", "other_split", "kind", "similarity"]


class Leaks(OfImages):
    """Images of one split that are in another one, too.

    Attributes
    ----------
    thresholds : dict of str to float
        Of each kind of likeness that was looked for, the eps that was in force; of perceptual hashes, a distance divided by 64.
    sizes : dict
        How many images of each split were compared.
    id_field : str
        The name of the id column.
    """

    def __init__(
        self,
        found: list[Delayed],
        *,
        like: Any,
        id_dtype: Any,
        split_dtype: Any,
        id_field: str,
        thresholds: dict[str, float],
        sizes: dict[Any, int],
        at_once: bool,
        images: Any,
    ) -> None:
        self.thresholds, self.sizes, self.id_field = thresholds, sizes, id_field
        self._found, self._like, self._at_once, self._images = found, like, at_once, images
        self._dtypes = {"id": id_dtype, "split": split_dtype, "duplicate_of": id_dtype, "other_split": split_dtype}

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {size:,}" for name, size in self.sizes.items())
        lazy = "at once" if self._at_once else "lazy"
        return (
            f"Leaks({plural(sum(self.sizes.values()), 'image')} compared: {splits}; by {', '.join(self.thresholds)} likeness; see .pairs ({lazy}), "
            ".counts(), .show() (at once))"
        )

    @property
    def pairs(self) -> Any:
        """One row an image and other split that it is in too, lazily where the frame was not in memory; by split.

        Its id, ``split``, ``duplicate_of`` (the image of the other split that is most like it, of equally like ones the lowest id), ``other_split``,
        ``kind`` (the strictest by which any of that split is like it: exact, perceptual or semantic) and ``similarity`` (1 of equal bytes,
        ``1 - distance / 64`` of hashes, the cosine of embeddings). So both images of a pair have a row, and
        ``remove(frame, pairs[pairs.split == "train"])`` drops those of one split.
        """
        host = pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in self._dtypes.items()})
        host = host.assign(kind=pd.Series([], dtype=schema.TEXT), similarity=pd.Series([], dtype=np.float32))
        host = host.rename(columns={"id": self.id_field})
        frame = lazily(
            self, [dask.delayed(_named)(table) for table in self._found], _COLUMNS, host, self._like, "leaks"
        )
        return frame.compute().reset_index(drop=True) if self._at_once else frame

    @interruptible
    def counts(self) -> pd.DataFrame:
        """Count the images of each split that are in each other one. Eager.

        Returns
        -------
        pandas.DataFrame
            One row for each two splits, both ways: ``split``, ``other_split``, a column for each kind of likeness, ``images`` (their sum) and ``share``
            (of the images of `split` that were compared).
        """
        of: Counter[tuple[Any, Any, int]] = Counter()
        for counted in dask.compute([dask.delayed(across.count)(table) for table in self._found])[0]:
            of += counted
        rows = []
        for name, size in self.sizes.items():
            for other in self.sizes:
                if other != name:
                    by_kind = {kind: of[name, other, KINDS.index(kind)] for kind in self.thresholds}
                    images = sum(by_kind.values())
                    rows.append(
                        {"split": name, "other_split": other, **by_kind, "images": images, "share": images / size}
                    )
        return pd.DataFrame(rows, columns=["split", "other_split", *self.thresholds, "images", "share"])

    @interruptible
    def show(
        self,
        n: int = 6,
        *,
        images: Any = None,
        columns: str | Sequence[str] | None = None,
        size: int = 160,
        storage_options: storage.Options = None,
    ) -> Page:
        """Show pairs of images of two splits, those least alike first: the ones to doubt. Eager.

        Parameters
        ----------
        n : int, default 6
            How many pairs of each two splits.
        images, columns, size, storage_options
            As for `Duplicates.show`.

        Returns
        -------
        Page

        Raises
        ------
        ValueError, KeyError
            As `Duplicates.show`.
        """
        from imgcurate.report import leaks as page
        from imgcurate.report.pairs import Options

        return page.least_similar(self, n, Options(images, columns, size, storage_options))

    def least_similar(self, n: int) -> pd.DataFrame:
        """Return `n` pairs of each two splits, each pair once, those least alike first. Eager.

        Parameters
        ----------
        n : int

        Returns
        -------
        pandas.DataFrame
            Rows of `pairs`, by split and other split.
        """
        some = dask.compute([dask.delayed(across.least_similar)(table, n) for table in self._found])[0]
        found = across.least_similar(pa.concat_tables(some, promote_options="permissive"), n)
        return schema.to_pandas(_named(found).rename_columns([self.id_field, *_COLUMNS[1:]]))


def _named(table: pa.Table) -> pa.Table:
    """Return a table whose kinds are named."""
    at = table.schema.get_field_index("kind")
    return table.set_column(at, "kind", pa.array(KINDS).take(table["kind"].combine_chunks())).select(_COLUMNS)
