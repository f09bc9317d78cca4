"""Galleries and pages that a person looks at, in a notebook and as files that open anywhere.

A page is HTML with its own style, SVG and thumbnails in it: no server, no network, no script.
"""
