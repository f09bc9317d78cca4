"""``imgcurate embed`` and ``imgcurate dedup``: images as vectors, and vectors, whoever made them, as duplicates."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from imgcurate.cli import clusters, inputs, options
from imgcurate.cli.tables import answer, lines
from imgcurate.printable import plural

# Vectors that are large against the workers' memory, from which a command that was stopped goes on.
_WORK = ".unfinished"
_OUTPUTS = {"pairs.parquet", "removals.parquet", "duplicates"}
_KNOWN = (
    "n_rows", "n_compared", "n_excluded", "n_clusters", "n_pairs", "eps", "min_similarity", "rule", "keep", "chosen",
)  # fmt: skip


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
    embed = commands.add_parser(
        "embed",
        help="embed images into Parquet",
        description="Write a row for each image with its embedding, size, place and caption into the folder OUT.parquet, which pandas, polars, DuckDB and "
        "imgcurate dedup read. A command that was stopped goes on when it is given again.",
    )
    inputs.add_to(embed)
    embed.add_argument("out", metavar="OUT.parquet", help="a folder for Parquet files")
    options.add_model(embed)
    options.add_pixels(embed)
    options.add_cluster(embed)
    options.add_storage(embed)
    options.add_json(embed)
    embed.add_argument("--overwrite", action="store_true", help="replace the Parquet files that are there")
    embed.set_defaults(function=_embed)

    dedup = commands.add_parser(
        "dedup",
        help="find duplicates among embeddings, whoever made them",
        description="Find semantic duplicates among embeddings: Parquet with lists, fixed-size lists or a column an element, of floats of any width; clip-retrieval's "
        "folders; .npy files with ids beside them. Writes OUT/pairs.parquet (image_id, duplicate_of, similarity, cluster: one row an image that goes), "
        "OUT/removals.parquet (image_id) and OUT/duplicates, which imgcurate sweep and Duplicates.load read.",
    )
    dedup.add_argument("embeddings", nargs="+", metavar="EMBEDDINGS", help="files, folders or globs; any fsspec URL")
    dedup.add_argument("out", metavar="OUT", help="a folder that is empty or not there yet")
    options.add_fields(dedup)
    options.add_duplicates(dedup)
    options.add_cluster(dedup)
    options.add_storage(dedup)
    options.add_json(dedup)
    dedup.add_argument("--overwrite", action="store_true", help="replace what an earlier dedup wrote into OUT")
    dedup.set_defaults(function=_dedup)


def _embed(given: argparse.Namespace) -> None:
    from imgcurate import encoders
    from imgcurate.encoders.embed import embed
    from imgcurate.run.embedding import refuse_files, write_embeddings
    from imgcurate.run.tasks.steps import Steps

    refuse_files(given.out, given.overwrite, given.storage_options)
    found = inputs.find(given)
    encoders.resolve(given.model, given.model_dir)
    with clusters.connected(given, goes_on=True) as connect:
        connect.start()
        frame = embed(
            found.read(),
            given.model,
            model_dir=given.model_dir,
            batch_size=given.batch_size,
            truncated=given.truncated,
            formats=options.names(given.formats),
            timeout=given.timeout,
            storage_options=given.storage_options,
        )
        steps = Steps(connect, not given.quiet)
        steps.say(f"reading {found.said}")
        written = write_embeddings(
            frame, given.out, steps, overwrite=given.overwrite, storage_options=given.storage_options
        )
    told = [
        ("images", f"{written.images:,} in {found.said}"),
        ("errors", f"{written.errors:,}{'; the column error says why' * bool(written.errors)}"),
        ("embedded", f"{written.images - written.errors:,} in {given.out}"),
    ]
    known = {"inputs": found.said, "model": given.model, "out": given.out, **written._asdict()}
    answer(given, known, lines(told))


def _dedup(given: argparse.Namespace) -> None:
    from imgcurate import storage, vectors
    from imgcurate.cluster import backend
    from imgcurate.dedup.graph.rank import in_force
    from imgcurate.dedup.semantic.search import check, semantic_duplicates
    from imgcurate.run.tasks.steps import Steps
    from imgcurate.sinks.parquet import write_parquet
    from imgcurate.sources.embeddings import read_embeddings

    asked = {name: getattr(given, name) for name in ("eps", "n_clusters", "keep", "rule", "probes", "exact")}
    fs, place = storage.open_filesystem(given.out, given.storage_options)
    _refuse_others(given, fs, place)
    out = storage.absolute(given.out, given.storage_options).rstrip("/")
    where = {"overwrite": given.overwrite, "storage_options": given.storage_options}
    frame = read_embeddings(
        given.embeddings if len(given.embeddings) > 1 else given.embeddings[0],
        id_field=given.id_field,
        embedding_field=given.embedding_field,
        storage_options=given.storage_options,
    )
    check(frame, **{**asked, "keep": in_force(given.keep, frame.columns, "hard")[0]})
    with clusters.connected(given) as connect:
        connect()
        frame = vectors.to_backend(frame, backend())
        steps = Steps(connect, not given.quiet)
        work = f"{out}/{_WORK}" if storage.is_local(out) else None
        with steps("comparing"):
            found = steps.watch(lambda: semantic_duplicates(frame, work=work, **asked))
        with steps("writing"):
            steps.watch(lambda: write_parquet(found.pairs, f"{out}/pairs.parquet", **where))
            steps.watch(lambda: write_parquet(found.removals(), f"{out}/removals.parquet", **where))
            steps.watch(lambda: found.save(f"{out}/duplicates", **where))
            removed = int(found.sweep([found.eps])["removed"].iloc[0])
        known = {name: getattr(found, name) for name in _KNOWN}
        known |= {"removed": removed, "out": given.out}
    if fs.exists(f"{place}/{_WORK}"):
        fs.rm(f"{place}/{_WORK}", recursive=True)
    answer(given, known, lines(list(_told(known))))


def _refuse_others(given: argparse.Namespace, fs: Any, place: str) -> None:
    """Raise where the output is a file, is what is read, or holds anything that is not to be replaced."""
    from imgcurate import storage

    if fs.isfile(place):
        raise FileExistsError(f"{given.out} is a file; name a folder for the output")
    out = storage.absolute(given.out, given.storage_options).rstrip("/")
    for name in given.embeddings:
        if storage.lies_below(f"{out}/pairs.parquet", [storage.absolute(name, given.storage_options)]):
            raise FileExistsError(f"OUT {given.out} is or lies in {name}, which is read; name a folder beside it")
    there = {name.rstrip("/").rpartition("/")[2] for name in fs.ls(place, detail=False)} if fs.exists(place) else set()
    if given.overwrite and there - {_WORK} and not there & _OUTPUTS:
        raise FileExistsError(f"{given.out} holds what no imgcurate dedup wrote; name another folder")
    if there - {_WORK} and not given.overwrite:
        raise FileExistsError(
            f"{given.out} is not empty; name another folder, or replace what an earlier dedup wrote with --overwrite"
        )


def _told(known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a person is told: names, and what is said of each."""
    chosen = {name: f" ({why})" for name, why in known["chosen"].items()}
    yield "embeddings", f"{known['n_rows']:,}"
    if known["n_excluded"]:
        yield "left out", f"{known['n_excluded']:,} that are null, zero, not finite or of images with an error"
    yield (
        "pairs",
        f"{known['n_pairs']:,} of similarity >= {known['min_similarity']:g}, in {plural(known['n_clusters'], 'cluster')}",
    )
    share = known["removed"] / max(known["n_rows"], 1)
    yield "duplicates", f"{known['removed']:,} ({share:.1%}), cosine >= 1 - {known['eps']:g}{chosen.get('eps', '')}"
    yield "stays", f"{known['keep']}{chosen.get('keep', '')}, rule {known['rule']}"
    yield "written", f"{known['out']}/pairs.parquet  {known['out']}/removals.parquet  {known['out']}/duplicates"
