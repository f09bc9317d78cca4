"""All that a page shows of a run, read from what the run wrote: on the cluster, in passes whose results are small."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import pandas as pd

from imgcurate import storage
from imgcurate.report.run import facts, map, relatives
from imgcurate.report.run.facts import Facts
from imgcurate.report.run.relatives import Relatives
from imgcurate.report.run.thresholds import Thresholds, try_others
from imgcurate.run.state.folder import Folder

#: How many of the largest groups of duplicates are shown.
GROUPS = 6
_AT_A_TIME = 16


@dataclass
class Gathered:
    """What is known of a run.

    Attributes
    ----------
    url : str
        Its folder.
    manifest : dict
    facts : Facts or None
        None where the input held no image.
    relatives : Relatives or None
        The images that those chosen are duplicates of; None where there are no duplicates.
    groups : list of str
        The kept images of which most duplicates were removed.
    thresholds : Thresholds or None
        Where the run stores its pairs.
    map : pandas.DataFrame or None
        As `imgcurate.report.run.map.place` gives it.
    """

    url: str
    manifest: Mapping[str, Any]
    facts: Facts | None
    relatives: Relatives | None
    groups: list[str]
    thresholds: Thresholds | None
    map: pd.DataFrame | None


def gather(url: str, graphs: Collection[str], storage_options: storage.Options = None) -> Gathered:
    """Read what a run wrote. Eager, on the cluster where there is one.

    Parameters
    ----------
    url : str
        The folder of a run that has finished.
    graphs : collection of str
        The folders that may hold the graph of its semantic duplicates.
    storage_options : dict, optional
        For the fsspec filesystem.

    Raises
    ------
    FileNotFoundError
        Where there is no run that has finished, or a part of its table of images is missing.
    RuntimeError
        Where the table of images and the manifest differ.
    """
    place = Folder(url, storage_options)
    manifest = place.finished(url)
    urls = place.images(manifest)
    if not urls:
        return Gathered(url, manifest, None, None, [], None, None)
    limits, median_side = facts.limits_of(manifest), manifest.get("median_side")
    of_each = max(1, map.IMAGES // len(map.some_of(urls)))
    drawn = [dask.delayed(map.sample, pure=False)(part, of_each, storage_options) for part in map.some_of(urls)]
    read = dask.delayed(facts.read, pure=False)
    known, placed = dask.compute(
        _tree(lambda some: read(some, limits, median_side, storage_options), facts.merge, urls),
        dask.delayed(map.place, pure=False)(drawn),
    )
    counts = manifest["counts"]
    if (known.read, known.kept) != (counts["read"], counts["kept"]):
        raise RuntimeError(
            f"{url}/images.parquet holds {known.read:,} images, {known.kept:,} of them kept, and its manifest says {counts['read']:,} and "
            f"{counts['kept']:,}: imgcurate verify says which files are not as they were written"
        )
    groups = [image_id for image_id, count in known.tallies["group"].largest(GROUPS) if count > 1]
    twins = {twin for (what, _), rows in known.rows.items() if what == "least" for twin in rows["duplicate_of"]}
    thresholds = try_others(graphs, manifest, storage_options) if manifest["reasons"].get("semantic") else None
    spared = {image_id for *pair, _ in thresholds.outside for image_id in pair} if thresholds else set()
    wanted = sorted(twins | spared | set(groups))
    if not wanted:
        return Gathered(url, manifest, known, None, [], thresholds, placed)
    find = dask.delayed(relatives.find, pure=False)
    (found,) = dask.compute(_tree(lambda some: find(some, wanted, groups, storage_options), relatives.merge, urls))
    groups.sort(key=lambda image_id: (-found.sizes[image_id], image_id))
    return Gathered(url, manifest, known, found, groups, thresholds, placed)


def _tree(leaf: Callable[[Sequence[str]], Any], merge: Callable[[Sequence[Any]], Any], urls: Sequence[str]) -> Any:
    """Return the merged results of all parts, lazily: some at a time, and of these some at a time."""
    size = min(_AT_A_TIME, max(1, len(urls) // _AT_A_TIME))
    level = [leaf(urls[start : start + size]) for start in range(0, len(urls), size)]
    join = dask.delayed(merge, pure=False)
    while len(level) > 1:
        level = [join(level[start : start + _AT_A_TIME]) for start in range(0, len(level), _AT_A_TIME)]
    return level[0]
