"""The page of what shards and image files hold, before a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from imgcurate import storage
from imgcurate.printable import plural
from imgcurate.report import charts
from imgcurate.report.gallery import cards
from imgcurate.report.page import Page, render

_SIZE = 160
_MOST_KINDS = 40


def page(known: Mapping[str, Any], sample: pd.DataFrame, storage_options: storage.Options = None) -> Page:
    """Return what was found in some inputs as a page; the images of the sample are read on the workers.

    Parameters
    ----------
    known : mapping
        What `imgcurate.run.inspection.Inspected.as_json` returns, and ``"inputs"``, what these were taken for.
    sample : pandas.DataFrame
        Rows of some of the images.
    storage_options : dict, optional
        For the fsspec filesystem.
    """
    images, captions = known["images"], known["captions"]
    counts = [
        ("Format", list(known["formats"].items())),
        ("Shorter side, in pixels", list(known["shorter_side"].items())),
        ("Caption", [(name, n) for name, n in captions.items() if n]),
        ("Text that is not UTF-8, read as", list(known["text_encodings"].items())),
    ]
    shown = cards(sample, [name for name in ("caption",) if name in sample], _SIZE, "image_id", storage_options)
    said = f"{plural(images, 'image')} in {known['inputs']}, of which {known['broken']:,} cannot be used"
    body = render(
        "inputs.html",
        said=said,
        charts=[(title, charts.bars(items, total=images, title=title)) for title, items in counts if items],
        errors=known["errors"][:_MOST_KINDS],
        rest=sum(error["images"] for error in known["errors"][_MOST_KINDS:]),
        images=shown,
        all=images,
        size=_SIZE,
    )
    return Page(said, body, f"Page({said}; see .save(path))")
