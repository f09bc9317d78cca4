"""Filters that papers published, as steps over the verbs, and the table that says what each step removes.

A recipe is a list of steps, each a name and a function that takes a frame. Recipes are put one after the other with ``+``.
"""

from imgcurate.recipes.datacomp import datacomp_basic, image_based, top_clip_score
from imgcurate.recipes.laion import laion
from imgcurate.recipes.pruning import d4, prototypes, semdedup
from imgcurate.recipes.steps import Step, apply

__all__ = [
    "Step",
    "apply",
    "d4",
    "datacomp_basic",
    "image_based",
    "laion",
    "prototypes",
    "semdedup",
    "top_clip_score",
]
