"""``imgcurate search``: the images that are nearest to a text or to an image, among embeddings that were written."""

from __future__ import annotations

import argparse
from typing import Any

from imgcurate.cli import clusters, options
from imgcurate.cli.tables import answer
from imgcurate.printable import plural, printable

_CAPTION, _ID = 60, 60
# Of an image that was found these are said to a machine, where they are known.
_KNOWN = ("image_id", "similarity", "caption", "url", "member", "offset", "bytes", "kept", "reason")


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    search = commands.add_parser(
        "search",
        help="find the images nearest to a text or an image",
        description="Find the images whose embeddings are nearest to that of a text, such as 'a red bicycle', or of an image. Reads what was written and "
        "changes nothing; a text needs a model that reads text, such as CLIP or SigLIP.",
    )
    search.add_argument(
        "out",
        metavar="OUT",
        help="the folder of a finished run, what imgcurate embed or save_embeddings wrote, or other files of embeddings, as imgcurate dedup takes them",
    )
    search.add_argument("text", metavar="TEXT", help="what to look for, in words")
    search.add_argument("--image", action=_InsteadOfText, metavar="FILE", help="an image to look for, instead of TEXT")
    search.add_argument("--k", type=int, default=20, metavar="N", help="how many images (default %(default)s)")
    search.add_argument("--kept", action="store_true", help="of a run, only the images that are kept")
    search.add_argument("--html", metavar="FILE", help="write the images as a page")
    search.add_argument("--overwrite", action="store_true", help="replace the page that is there")
    options.add_fields(search)
    model = options.group(search, "model")
    model.add_argument("--model", help="what made the embeddings; default: as they say themselves")
    model.add_argument("--model-dir", metavar="DIR", help="where weights lie, for use without a network")
    options.add_storage(search)
    options.add_json(search)
    search.set_defaults(function=_search)


class _InsteadOfText(argparse.Action):
    """An option that stands for TEXT. That is not one with ``nargs="?"``, which argparse takes for missing where options stand before it."""

    def __call__(self, parser: Any, given: argparse.Namespace, value: Any, option: str | None = None) -> None:
        given.image = value
        for action in parser._actions:
            action.required &= action.dest != "text"


def _search(given: argparse.Namespace) -> None:
    from imgcurate.report.gallery import check_options
    from imgcurate.report.page import refuse_file
    from imgcurate.run.search import encoder_of, look_for, open_written, page_of

    if given.text is not None and given.image is not None:
        raise ValueError("give what to look for as TEXT or as --image FILE, not as both")
    where = {"storage_options": given.storage_options}
    check_options("search", 160, k=given.k)
    if given.html is not None:
        refuse_file(given.html, given.storage_options, overwrite=given.overwrite)
    written = open_written(
        given.out, kept=given.kept, id_field=given.id_field, embedding_field=given.embedding_field, **where
    )
    if given.html is not None and not written.has_images:
        raise ValueError(
            f"{written.said} does not say where its images lie, and --html shows them: name a run's folder, or what imgcurate embed wrote"
        )
    model = encoder_of(written, given.model, of_text=given.text is not None, model_dir=given.model_dir)
    with clusters.working():
        found = look_for(
            written, given.k, text=given.text, image=given.image, model=model, model_dir=given.model_dir, **where
        )
        what = (
            given.image
            if given.text is None
            else f"\N{LEFT DOUBLE QUOTATION MARK}{given.text}\N{RIGHT DOUBLE QUOTATION MARK}"
        )
        said = f"{plural(len(found), 'image')} nearest to {printable(what)}, the nearest first"
        if given.html is not None:
            page_of(found, said, image=given.image, **where).save(given.html, overwrite=True, **where)
    columns = [name for name in _KNOWN if name in found.columns]
    hits = found[columns].astype(object).where(found[columns].notna(), None).to_dict("records")
    known = {
        "out": given.out,
        "text": given.text,
        "image": given.image,
        "model": model,
        "page": given.html,
        "found": hits,
    }
    answer(given, known, _table(hits))


def _table(hits: list[dict[str, Any]]) -> str:
    """Lay out what was found: how near it is, its id, and the beginning of its caption."""
    ids = [printable(str(hit["image_id"]), _ID) for hit in hits]
    width = max(map(len, [*ids, "image_id"]))
    captions = [printable(str(hit.get("caption") or ""), _CAPTION) for hit in hits]
    lines = [f"{'similarity':>10}  {'image_id':<{width}}  {'caption' if any(captions) else ''}"]
    lines += [
        f"{hit['similarity']:>10.4f}  {name:<{width}}  {caption}"
        for hit, name, caption in zip(hits, ids, captions, strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)
