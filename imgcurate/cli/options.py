"""Options that several commands share, and what their texts become."""

from __future__ import annotations

import argparse
import json
from typing import Any


def group(parser: argparse.ArgumentParser, title: str) -> Any:
    """Return the group of options that stands under a title in the help; there is one of each."""
    there = (known for known in parser._action_groups if known.title == title)
    return next(there, None) or parser.add_argument_group(title)


def add_common(parser: argparse.ArgumentParser, **default: Any) -> None:
    """Add the options that every command has, which may stand before the command too."""
    options = group(parser, "what is printed")
    options.add_argument(
        "--quiet", action="store_true", help="print no progress: results, warnings and errors only", **default
    )
    options.add_argument("--debug", action="store_true", help="print the traceback of what went wrong", **default)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that have something to say to a machine."""
    group(parser, "what is printed").add_argument(
        "--json", action="store_true", help="print one JSON object on stdout, and nothing else there"
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a command runs."""
    options = group(parser, "where it runs")
    options.add_argument(
        "--scheduler", metavar="ADDRESS", help="a running Dask scheduler; default: this machine's GPUs or cores"
    )
    options.add_argument("--scheduler-file", metavar="FILE", help="the file that a running Dask scheduler wrote")
    options.add_argument("--workers", type=int, metavar="N", help="worker processes to start; default: one a core")
    options.add_argument("--memory-limit", metavar="SIZE", help="memory of a worker, such as 8GiB; default: its share")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add the options of the file systems that a command reads and writes."""
    group(parser, "where it runs").add_argument(
        "--storage-options",
        type=storage_options,
        metavar="JSON",
        help="for the file systems of inputs and output, such as '{\"anon\": true}' or anon=true,endpoint_url=http://...",
    )


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the columns of embeddings of others."""
    parser.add_argument(
        "--id-field", metavar="COLUMN", help="the column of ids; default: image_id, id, key, path, url and the like"
    )
    parser.add_argument(
        "--embedding-field", metavar="COLUMN", help="the column of vectors; default: embedding, or the only such column"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what embeds, and how."""
    options = group(parser, "model")
    options.add_argument(
        "--model",
        default="openai/clip-vit-large-patch14",
        help="a checkpoint of CLIP, SigLIP, DINOv2, ... (hub id or folder), or efficientnet-lite0 (default %(default)s)",
    )
    options.add_argument("--model-dir", metavar="DIR", help="where weights lie, for use without a network")
    options.add_argument("--batch-size", type=int, metavar="N", help="images a forward pass; default: by device")


def add_pixels(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images are taken."""
    options = group(parser, "which images are read, and how")
    options.add_argument(
        "--truncated", action="store_true", help="keep images whose end is missing; else they are errors"
    )
    options.add_argument(
        "--formats",
        default="",
        metavar="NAMES",
        help="formats to take beside the usual ones: some of PSD,ICO,TGA,PPM,PCX,QOI",
    )
    options.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds that decoding an image may take; default: no limit but that of its size",
    )


def add_sidecars(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how samples are read."""
    options = group(parser, "which images are read, and how")
    options.add_argument(
        "--caption-from",
        default="txt",
        metavar="EXT",
        help="tar shards: the extension of captions, or json:KEY (default %(default)s)",
    )
    options.add_argument(
        "--image", metavar="EXT", help="tar shards: the extension of the image, of samples that have several"
    )
    options.add_argument(
        "--max-sidecar",
        type=int,
        default=1 << 20,
        metavar="BYTES",
        help="a caption or a JSON of more bytes is an error (default %(default)s)",
    )


def add_roots(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where images of strangers' rows may lie."""
    group(parser, "which images are read, and how").add_argument(
        "--roots",
        action="append",
        metavar="FOLDER",
        help="Parquet: an image that does not lie below FOLDER is an error; give it again for more; default: rows may name any file that you may read",
    )


def add_duplicates(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images are duplicates, and which of them stays."""
    options = group(parser, "duplicates")
    options.add_argument(
        "--eps",
        type=float,
        help="duplicates have cosine >= 1 - EPS; default: what is known of the model (0.01 for CLIP, 0.2 for efficientnet-lite0), else 0.01",
    )
    options.add_argument(
        "--n-clusters", type=int, metavar="K", help="k-means clusters to look for duplicates in; default: by cost"
    )
    options.add_argument(
        "--probes",
        type=int,
        default=2,
        metavar="P",
        help="compare an image in up to P + 1 clusters near to it; 1: in the nearest (default 2)",
    )
    options.add_argument("--exact", action="store_true", help="lose no pair of semantic duplicates, whatever it costs")
    options.add_argument(
        "--keep",
        type=keep,
        default="largest",
        help="which of several duplicates stays: largest (most pixels, then most bytes), hard, easy, random, id, or columns such as "
        "aesthetic_score:max,bytes:max (default %(default)s)",
    )
    options.add_argument(
        "--rule",
        choices=("cover", "pointwise", "component"),
        default="cover",
        help="an image goes where a better-ranked one that is kept is within EPS (cover), where any is (pointwise), or where such pairs connect it with one "
        "(component; default %(default)s)",
    )


def keep(text: str) -> Any:
    """Return what ``--keep`` says, as the verbs take it.

    Examples
    --------
    >>> keep("hard"), keep("width:max,bytes:min")
    ('hard', [('width', 'max'), ('bytes', 'min')])
    """
    if text in ("largest", "hard", "easy", "random", "id"):
        return text
    columns = []
    for item in text.split(","):
        column, colon, order = item.rpartition(":")
        if not colon or order not in ("min", "max"):
            raise argparse.ArgumentTypeError(
                f"{item!r} is not largest, hard, easy, random, id or COLUMN:min or COLUMN:max"
            )
        columns.append((column, order))
    return columns


def names(text: str) -> tuple[str, ...]:
    """Return names that are parted by commas.

    Examples
    --------
    >>> names("PSD, ICO"), names("")
    (('PSD', 'ICO'), ())
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def numbers(text: str) -> list[float]:
    """Return numbers that are parted by commas.

    Examples
    --------
    >>> numbers(".01,.02")
    [0.01, 0.02]
    """
    try:
        found = [float(item) for item in text.split(",") if item.strip()]
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers parted by commas: {problem}") from None
    if not found:
        raise argparse.ArgumentTypeError("give at least one number")
    return found


def storage_options(text: str) -> dict[str, Any]:
    """Return options for fsspec from JSON, or from ``name=value,...`` of which each value is JSON or else text.

    Examples
    --------
    >>> storage_options("anon=true,endpoint_url=http://127.0.0.1:9000"), storage_options('{"key": "a,b"}')
    ({'anon': True, 'endpoint_url': 'http://127.0.0.1:9000'}, {'key': 'a,b'})
    """
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as problem:
            raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {problem}") from None
    found: dict[str, Any] = {}
    for item in text.split(","):
        name, sign, value = item.partition("=")
        if not sign or not name.strip():
            raise argparse.ArgumentTypeError(f"{item!r} is not NAME=VALUE; several are parted by commas, or give JSON")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found
