"""The report of a run: one page that says what became of the images, with pictures, made from what the run wrote."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pandas as pd

from imgcurate import storage
from imgcurate.printable import plural, printable
from imgcurate.report.page import Page, render
from imgcurate.report.run import funnel, sections
from imgcurate.report.run.album import SIZE, Album
from imgcurate.report.run.gather import Gathered, gather
from imgcurate.report.thumbnails import Thumbnail, thumbnails


def write_report(
    url: str,
    to: str,
    graphs: Collection[str],
    watch: Callable[[Callable[[], Any]], Any],
    storage_options: storage.Options = None,
) -> None:
    """Write the page about a run.

    Parameters
    ----------
    url : str
        The folder of a run that has finished.
    to : str
        The file to write, or to replace.
    graphs : collection of str
        The folders that may hold the graph of its semantic duplicates.
    watch : callable
        Calls a function that waits for the cluster, and returns what that returns.
    storage_options : dict, optional
        For the fsspec filesystem of the sources and the folder.

    Raises
    ------
    FileNotFoundError
        Where the run has not finished.
    """
    gathered = watch(lambda: gather(url, graphs, storage_options))
    page = page_of(gathered, lambda rows: watch(lambda: thumbnails(rows, SIZE, storage_options)))
    page.save(to, overwrite=True, storage_options=storage_options)


def page_of(gathered: Gathered, make: Callable[[pd.DataFrame], Sequence[Thumbnail]]) -> Page:
    """Return the page about a run.

    Parameters
    ----------
    gathered : Gathered
    make : callable
        Takes rows and returns a thumbnail of each.
    """
    manifest = gathered.manifest
    album = Album(manifest["options"].get("max_nsfw"))
    values: dict[str, Any] = {"kept": None, "groups": None, "errors": None, "pictures": None, "map": None}
    values |= {"duplicates": [], "flags": [], "scores": [], "measures": []}
    if gathered.facts is not None and gathered.facts.read:
        # In the order in which they are given pictures, as long as there are some; the map takes what is left.
        values["kept"] = sections.kept(gathered, album)
        values["duplicates"] = sections.duplicates(gathered, album)
        values["groups"] = sections.groups(gathered, album)
        values["flags"], values["scores"] = sections.flags_and_scores(gathered, album)
        values["measures"] = sections.measures(gathered, album)
        values["map"] = sections.map_of(gathered, album)
        values["errors"] = sections.errors(gathered)
        values["pictures"] = sections.pictures(gathered)
        album.develop(make)
    counts = manifest["counts"]
    title = f"{counts['kept']:,} of {plural(counts['read'], 'image')} kept"
    body = render(
        "run/report.html",
        title=title,
        counts=counts,
        steps=funnel.steps_of(manifest),
        sources=sections.sources(gathered),
        about=sections.about(gathered),
        onwards=sections.onwards(gathered),
        **values,
    )
    out = printable(str(manifest["options"]["out"]))
    return Page(f"{title}: {out}", body, f"Report of {out}: {title}")
