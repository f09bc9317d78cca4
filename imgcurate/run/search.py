"""Looking for images in what was written: a run's folder, embeddings that `save_embeddings` wrote, or files of embeddings."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pandas as pd

from imgcurate import encoders, identity, storage
from imgcurate.dedup.semantic import corpus
from imgcurate.nearest.query import search
from imgcurate.printable import printable
from imgcurate.report import rows
from imgcurate.report.gallery import cards, grid
from imgcurate.report.page import Page
from imgcurate.run.state.folder import Folder
from imgcurate.sources.embeddings import made_by, read_embeddings
from imgcurate.sources.files import read_files

# What is said of an image that was found, where it is known.
_SAID = ("kept", "reason")
_SIZE = 160


class Written(NamedTuple):
    """Embeddings that were written.

    Attributes
    ----------
    said : str
        What a user calls them.
    path : str
    encoder : Identity or None
        What made them, where they name it.
    frame : Dask DataFrame or None
        None of what `save_embeddings` wrote, which holds ids and vectors alone.
    id_field : str
        Its column of ids.
    """

    said: str
    path: str
    encoder: identity.Identity | None
    frame: Any
    id_field: str = "image_id"

    @property
    def has_images(self) -> bool:
        """Whether it is known where the images lie."""
        return self.frame is not None and set(rows.PLACE) <= set(self.frame.columns)


def open_written(
    out: str | os.PathLike[str],
    *,
    kept: bool = False,
    id_field: str | None = None,
    embedding_field: str | None = None,
    storage_options: storage.Options = None,
) -> Written:
    """Find the embeddings that a path names; nothing but the beginning of files is read.

    Parameters
    ----------
    out : str or path
        The folder of a run that has finished; one that `save_embeddings` wrote; or what `read_embeddings` reads.
    kept : bool
        Only the images that a run keeps.
    id_field, embedding_field : str, optional
        As for `read_embeddings`.
    storage_options : dict, optional
        For the fsspec filesystem.

    Raises
    ------
    FileNotFoundError
        Where there are no embeddings, or a run has not finished.
    ValueError, KeyError
        As `read_embeddings` does; or where `kept` is given and it is not known which images are.
    """
    said = printable(os.fspath(out))
    url = storage.absolute(out, storage_options).rstrip("/")
    fs, place = storage.open_filesystem(url, storage_options)
    run = Folder(url, storage_options) if fs.isdir(place) else None
    if corpus.is_saved(url, storage_options):
        if kept:
            raise ValueError(_unknown_kept(said))
        named = id_field or "image_id"
        encoders_of = corpus.saved_corpus(url, named, storage_options).encoders
        return Written(said, url, identity.one(encoders_of, said), None, named)
    files: Any = out
    if run is not None and (run.manifest() is not None or run.record() is not None):
        files = run.images(run.finished(out))
    if not files:
        raise FileNotFoundError(f"{said} is a run of no images: there is nothing to look for")
    frame = read_embeddings(files, id_field=id_field, embedding_field=embedding_field, storage_options=storage_options)
    if kept:
        if "kept" not in frame.columns:
            raise ValueError(_unknown_kept(said))
        frame = frame[frame["kept"].isin([True])]
    return Written(said, url, made_by(files, storage_options), frame)


def encoder_of(
    written: Written, model: str | None, *, of_text: bool, model_dir: str | os.PathLike[str] | None = None
) -> str:
    """Return which model makes a vector of what is looked for, after loading it.

    Parameters
    ----------
    written : Written
    model : str, optional
        Default: what made the embeddings.
    of_text : bool
        Whether a text is looked for, and not an image.
    model_dir : str or path, optional

    Raises
    ------
    FileNotFoundError, ValueError
        Where it is not known which, it cannot be had, reads no text, or did not make the embeddings.
    """
    if model is None:
        if written.encoder is None:
            raise ValueError(f"{written.said} does not say which model made its embeddings: name it, model=...")
        model = written.encoder.name
    load: Any = encoders.load_text_encoder if of_text else encoders.load_encoder
    known = load(model, model_dir=model_dir).identity
    identity.one([known, *([written.encoder] if written.encoder else [])], "the search")
    return model


def look_for(
    written: Written,
    k: int,
    *,
    text: str | None,
    image: str | None,
    model: str,
    model_dir: str | os.PathLike[str] | None = None,
    storage_options: storage.Options = None,
) -> pd.DataFrame:
    """Return the `k` images that are nearest to a text or to an image, and what is known of them.

    Returns
    -------
    pandas.DataFrame
        ``image_id``, ``similarity`` and, of a frame, what says where the images lie and what became of them; the nearest first.

    Raises
    ------
    ValueError
        Where `image` names several, and as `search` does.
    """
    found = search(
        written.path if written.frame is None else written.frame,
        k,
        text=text,
        image=image,
        model=model,
        id_field=written.id_field,
        model_dir=model_dir,
        storage_options=storage_options,
    )
    if found["query"].nunique() > 1:
        raise ValueError(f"image={printable(str(image))} names {found['query'].nunique():,} images: name one")
    found = found.drop(columns="query").rename(columns={written.id_field: "image_id"})
    if written.frame is None:
        return found
    columns = [name for name in _SAID if name in written.frame.columns]
    known = rows.by_ids(written.frame, found["image_id"].tolist(), columns)
    return found.merge(known, on="image_id", how="left")


def page_of(
    found: pd.DataFrame, said: str, *, image: str | None = None, storage_options: storage.Options = None
) -> Page:
    """Return the images that were found as a page, with how near they are, below the one that was looked for."""
    said_of_some = [name for name in ("caption", "reason") if name in found.columns and found[name].notna().any()]
    asked = None
    if image is not None:
        row = read_files(image, storage_options=storage_options).compute()
        (asked,) = cards(row, [], _SIZE, "image_id", storage_options)
    return grid(found, ["similarity", *said_of_some], said, _SIZE, "image_id", storage_options, asked)


def _unknown_kept(said: str) -> str:
    return f"{said} does not say which images are kept: kept=True is for the folder of a run"
