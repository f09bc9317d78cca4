"""Thresholds: what an eps may be, and which is taken for an encoder: from which cosine on two images are copies differs between encoders."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal

from imgcurate.identity import Identity

#: What is compared: embeddings, stored bytes, or perceptual hashes.
Kind = Literal["semantic", "exact", "perceptual"]
#: Of a perceptual hash; an eps is the share of them in which two hashes may differ.
BITS = 64
#: What is taken where nothing is known of the encoder.
DEFAULT = 0.01

#: Of a kind of encoder the eps, and where it is from.
KNOWN = {
    # What NVIDIA's NeMo Curator takes for CLIP ViT-L/14 (its tutorial of image deduplication).
    "clip": 0.01,
    "clip_vision_model": 0.01,
    # Measured: copies of 1,000 photos at half their size, 90 % of their area, JPEG quality 75 and 1.4 times as bright had a cosine of .86, .94,
    # .92 and .89 in 95 of 100 cases, and the two most alike of different photos one of .75.
    "efficientnet-lite0": 0.2,
}


def eps_of(encoder: Identity | None) -> tuple[float, str]:
    """Return the eps for an encoder's vectors, and why it is that.

    Parameters
    ----------
    encoder : Identity, optional
        As the type of an embedding column names it.

    Examples
    --------
    >>> eps_of(Identity("efficientnet-lite0", "efficientnet-lite0", 1280, "0f"))
    (0.2, 'for efficientnet-lite0')
    >>> eps_of(Identity("google/siglip-base-patch16-224", "siglip", 768, "0f"))
    (0.01, 'the default, as no better one is known for siglip')
    >>> eps_of(None)
    (0.01, 'the default, as the embeddings do not name their encoder')
    """
    if encoder is None:
        return DEFAULT, "the default, as the embeddings do not name their encoder"
    if encoder.kind not in KNOWN:
        return DEFAULT, f"the default, as no better one is known for {encoder.kind}"
    return KNOWN[encoder.kind], f"for {encoder.kind}"


def thresholds_of(eps: Any) -> list[float]:
    """Return one threshold, or several, as a list; raises a ValueError where they are no numbers.

    Examples
    --------
    >>> thresholds_of(0.1), thresholds_of([0.1, 0.2])
    ([0.1], [0.1, 0.2])
    """
    try:
        return [float(eps)] if isinstance(eps, Real) else [float(value) for value in eps]
    except (TypeError, ValueError):
        raise ValueError(f"eps={eps!r} is neither a number nor a list of numbers") from None


def check_eps(eps: Any) -> None:
    """Raise a ValueError where `eps` is no threshold."""
    if not isinstance(eps, Real) or not 0 < float(eps) < 2:
        raise ValueError(
            f"eps={eps!r} must be above 0 and below 2: images are duplicates where their similarity (of embeddings the cosine, of hashes the share of "
            "equal bits) is at least 1 - eps; use 1e-6 for vectors equal up to rounding"
        )
