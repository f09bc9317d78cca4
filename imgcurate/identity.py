"""Which encoder made a vector: carried by the type of the embedding column, so that no verb needs to pass it on.

Arrow keeps metadata of the field inside a list type through filters, joins, concatenation, pickling and Parquet, and ignores it where types
are compared. cuDF drops it, and two columns that pandas puts together within one partition keep that of the first: of what is not known
nothing is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from imgcurate.printable import printable, quoted

_KEY = b"imgcurate.encoder"


@dataclass(frozen=True, order=True)
class Identity:
    """An encoder, as it is recorded beside its vectors.

    Attributes
    ----------
    name : str
        A hub id, a directory, or what a callable is called.
    kind : str
        The model's type: ``"clip"``, ``"siglip"`` and so on.
    dimension : int
    fingerprint : str
        Hex sha256 of the files it was loaded from.
    """

    name: str
    kind: str
    dimension: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{quoted([self.name])} ({printable(self.kind, 50)}, {self.dimension}-d, {printable(self.fingerprint[:12])})"


def list_type(identity: Identity | None) -> pa.DataType:
    """Return the type of an embedding column whose vectors this encoder made.

    Examples
    --------
    >>> list_type(Identity("org/model", "clip", 512, "0f")) == pa.list_(pa.float32())
    True
    """
    if identity is None:
        return pa.list_(pa.float32())
    return pa.list_(pa.field("item", pa.float32(), metadata={_KEY: json.dumps(asdict(identity))}))


def of_column(column: Any) -> frozenset[Identity]:
    """Return the encoders that made the vectors of a column: none where it is not known.

    Parameters
    ----------
    column : pandas or cuDF Series, or pyarrow.ChunkedArray

    Examples
    --------
    >>> kind = list_type(Identity("org/model", "clip", 2, "0f"))
    >>> [identity.name for identity in of_column(pa.chunked_array([pa.array([[1, 2]], kind)]))]
    ['org/model']
    """
    if not isinstance(column, pa.ChunkedArray):
        # As it is: a conversion would make one chunk, and one type, of several.
        as_arrow = getattr(getattr(column, "array", None), "__arrow_array__", None)
        column = as_arrow() if as_arrow is not None else None
    if not isinstance(column, pa.ChunkedArray):
        return frozenset()
    kinds = [chunk.type for chunk in column.chunks if len(chunk) > chunk.null_count]
    return frozenset(identity for kind in kinds if (identity := of_type(kind)) is not None)


def one(identities: Iterable[Identity], what: str) -> Identity | None:
    """Return the only encoder among `identities`, or None where none is known.

    Raises
    ------
    ValueError
        Where there are several; `what` says where they met, such as ``"the frame"``.

    Examples
    --------
    >>> one([Identity("a", "clip", 2, "0f"), Identity("b", "dinov2", 2, "1f")], "the frame")
    Traceback (most recent call last):
    ValueError: the frame mixes the vectors of 'a' (clip, 2-d, 0f) and 'b' (dinov2, 2-d, 1f), which cannot be compared; embed all images with one encoder
    """
    # The same files under two names are one encoder.
    found = {identity.fingerprint: identity for identity in sorted(set(identities), reverse=True)}
    if len(found) > 1:
        names = " and ".join(map(str, sorted(found.values())))
        raise ValueError(
            f"{what} mixes the vectors of {names}, which cannot be compared; embed all images with one encoder"
        )
    return next(iter(found.values()), None)


def to_metadata(identity: Identity | None) -> dict[str, str]:
    """Return what a Parquet file's metadata says of the encoder."""
    return {} if identity is None else {_KEY.decode(): json.dumps(asdict(identity))}


def from_metadata(metadata: dict[bytes, bytes] | None) -> Identity | None:
    """Return the encoder that a Parquet file's metadata names; None where it names none, or what stands there is no encoder.

    Examples
    --------
    >>> from_metadata({b"imgcurate.encoder": b'{"name": "m", "kind": "clip", "dimension": 2, "fingerprint": "0f"}'}).kind
    'clip'
    """
    content = (metadata or {}).get(_KEY)
    try:
        made = None if content is None else Identity(**json.loads(content))
    except (ValueError, TypeError, RecursionError):  # what others write into files is not for a reader to stumble over
        return None
    kinds = {"name": str, "kind": str, "dimension": int, "fingerprint": str}
    return made if made is not None and all(type(getattr(made, name)) is kind for name, kind in kinds.items()) else None


def of_type(kind: pa.DataType) -> Identity | None:
    """Return the encoder that the type of an embedding column names.

    Examples
    --------
    >>> of_type(list_type(Identity("org/model", "clip", 512, "0f"))).dimension
    512
    """
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return None
    return from_metadata(kind.value_field.metadata)
