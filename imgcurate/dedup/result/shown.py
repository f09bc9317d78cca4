"""What a result shows of the images: pairs around the cut, the largest groups, a curve of thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from imgcurate import storage
from imgcurate.cluster import interruptible

if TYPE_CHECKING:
    from imgcurate.dedup.result import Duplicates
    from imgcurate.report.page import Page


class OfImages:
    """A result that knows where the images that it is about lie: in a frame, which stays behind where the result is sent or written."""

    _images: Any

    def __getstate__(self) -> dict[str, Any]:
        # What the frame is made of, or holds, is not this result's.
        return self.__dict__ | {"_images": None}


class Shown(OfImages):
    """The pages of `Duplicates`, each made when it is asked for."""

    def _repr_html_(self) -> str:
        from imgcurate.report import pairs

        return pairs.summary(_found(self))

    @interruptible
    def show(
        self,
        n: int = 6,
        *,
        around: float | None = None,
        images: Any = None,
        columns: str | Sequence[str] | None = None,
        size: int = 160,
        storage_options: storage.Options = None,
    ) -> Page:
        """Show the pairs of images on either side of the cut: what to look at before anything is removed. Eager.

        Parameters
        ----------
        n : int, default 6
            How many pairs on each side. Just inside are the removed images that are least like the one that each duplicates (`least_similar`); just
            outside, the most similar of the stored pairs of which both images stay.
        around : float, optional
            Another eps than that in force, up to ``1 - min_similarity``.
        images : Dask, pandas or cuDF DataFrame, optional
            With `id_field`, ``url``, ``offset`` and ``bytes``: where the images lie. Default: the frame in which duplicates were looked for, if it
            has these columns. Filters of it are not asked again, and only those of its columns are computed that are shown.
        columns : str or list of str, optional
            Columns of that frame to show below each image, beside its id and its size.
        size : int, default 160
            Of a thumbnail's longer side, in pixels.
        storage_options : dict, optional
            For the fsspec filesystem.

        Returns
        -------
        Page
            The better-ranked of two images first.

        Raises
        ------
        ValueError
            Where an option is out of range, or it is not known where the images lie, as after `load`.
        KeyError
            Where a column is missing.

        Examples
        --------
        >>> duplicates = semantic_duplicates(frame, eps=0.05)  # doctest: +SKIP
        >>> duplicates.show(around=0.03)  # doctest: +SKIP
        """
        from imgcurate.report import pairs

        found = _found(self)
        eps = found._check(found.eps if around is None else around)
        return pairs.around_cut(found, n, eps, pairs.Options(images, columns, size, storage_options))

    @interruptible
    def show_groups(
        self,
        n: int = 6,
        *,
        most: int = 8,
        images: Any = None,
        columns: str | Sequence[str] | None = None,
        size: int = 120,
        storage_options: storage.Options = None,
    ) -> Page:
        """Show the largest groups of duplicates, in each the image that stays first. Eager.

        Parameters
        ----------
        n : int, default 6
            How many groups.
        most : int, default 8
            How many of the images that go are shown of each: those that are least like the one that stays, with their similarity.
        images, columns, size, storage_options
            As for `show`.

        Returns
        -------
        Page

        Raises
        ------
        ValueError, KeyError
            As `show`.
        """
        from imgcurate.report import pairs

        return pairs.largest_groups(_found(self), n, most, pairs.Options(images, columns, size, storage_options))

    @interruptible
    def plot_sweep(self, eps: float | Sequence[float] | None = None) -> Page:
        """Draw which share of the images each threshold removes, and mark the one in force. Eager.

        Parameters
        ----------
        eps : float or sequence of float, optional
            Each up to ``1 - min_similarity``. Default: the one in force, and about twelve round ones as far as pairs are stored; of perceptual hashes each
            number of bits.

        Returns
        -------
        Page
            The curve, and the table that `sweep` returns.

        Raises
        ------
        ValueError
            Where an eps is out of range.
        """
        from imgcurate.report import pairs

        return pairs.sweep(_found(self), eps)


def with_places(frame: Any) -> Any:
    """Return a frame if it says where images lie."""
    return frame if {"url", "offset", "bytes"}.issubset(getattr(frame, "columns", ())) else None


def _found(shown: Shown) -> Duplicates:
    return cast("Duplicates", shown)
