"""LAION's filter of image-text pairs."""

from __future__ import annotations

from imgcurate.arguments import check_cosine
from imgcurate.recipes.steps import Step, column


def laion(min_clip_score: float = 0.28) -> list[Step]:
    """Return LAION's filter: a caption of at least 5 characters, a file of at least 5,000 bytes, a cosine of image and caption.

    Parameters
    ----------
    min_clip_score : float, default 0.28
        That of LAION-5B's English part, with CLIP ViT-B/32; its other languages had 0.26 with a multilingual CLIP, LAION-400M 0.3.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``caption``, ``bytes`` and ``clip_score`` (of `score_text`).

    Raises
    ------
    ValueError
        Where `min_clip_score` is no cosine.

    Notes
    -----
    C. Schuhmann et al., "LAION-400M", 2021 (arXiv 2111.02114), and "LAION-5B", NeurIPS 2022 (arXiv 2210.08402). Not in it: the Bloom filter of
    URLs, languages, and the search for illegal images.

    Examples
    --------
    >>> from imgcurate import recipes
    >>> [name for name, _ in recipes.laion(0.3)]
    ['caption of at least 5 characters', 'file of at least 5,000 bytes', 'clip_score of at least 0.3']
    """
    check_cosine("min_clip_score", min_clip_score)
    return [
        ("caption of at least 5 characters", lambda frame: column(frame, "caption").str.len() >= 5),
        ("file of at least 5,000 bytes", lambda frame: column(frame, "bytes") >= 5000),
        (f"clip_score of at least {min_clip_score:g}", lambda frame: column(frame, "clip_score") >= min_clip_score),
    ]
