"""From which cosine two images are copies of one another: each encoder has its own, as far as one is known."""

from __future__ import annotations

from imgcurate.identity import Identity

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
