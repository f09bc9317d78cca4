"""The folder of a run: its outputs, the tables that it goes on from, and the record of what it was started with."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from fsspec.utils import glob_translate

from imgcurate import storage
from imgcurate.printable import printable
from imgcurate.run.inputs import Unit
from imgcurate.run.output import files
from imgcurate.run.state.lock import locked
from imgcurate.sources.references import References

WORK, REPORT = ".run", "report.html"
#: The folder, in that one, of graphs of duplicates.
GRAPHS = "graphs"
_FOLDERS = (WORK, "shards", "files", "images.parquet", "files.parquet")
OUTPUTS = ("shards", "files", "images.parquet", "shards.parquet", "files.parquet", "manifest.json")

_NAMES = {"shards": re.compile(r"\d{5,}\.tar"), "images.parquet": re.compile(r"part\.\d{5,}\.parquet")}


def is_output(output: str, name: str) -> bool:
    """Tell whether a file in a folder of a run's outputs has the name of one that a run writes.

    Examples
    --------
    >>> is_output("shards", "00012.tar"), is_output("shards", "mine.tar")
    (True, False)
    """
    return _NAMES[output].fullmatch(name) is not None


class Folder:
    """A run's folder, held by this process for as long as the block of `open_folder` lasts.

    Attributes
    ----------
    url : str
    storage_options : dict or None
    """

    def __init__(self, url: str, storage_options: storage.Options) -> None:
        self.url, self.storage_options = url, storage_options

    def table(self, name: str) -> str:
        """Return the folder of a table of parts, which is there where folders are needed."""
        folder = f"{self.url}/{WORK}/{name}"
        if storage.is_local(folder):
            os.makedirs(folder, exist_ok=True)
        return folder

    def record(self) -> dict[str, Any] | None:
        """Return what the run that is here was started with."""
        return self._read(f"{WORK}/run.json")

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of a run that has finished."""
        return self._read("manifest.json")

    def finished(self, said: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the manifest; raises a FileNotFoundError where no run has finished here, with the folder's name as a user `said` it."""
        manifest = self.manifest()
        if manifest is None:
            what = printable(os.fspath(said))
            if self.record() is not None:
                raise FileNotFoundError(
                    f"{what} holds a run that has not finished: give its imgcurate run command again to finish it"
                )
            raise FileNotFoundError(
                f"{what} holds no finished run: there is no manifest.json; name the OUT of an imgcurate run that has ended"
            )
        return manifest

    def images(self, manifest: Mapping[str, Any]) -> list[str]:
        """Return the URLs of the parts of the table of images, in order; raises a FileNotFoundError where one is missing."""
        folder = f"{self.url}/images.parquet"
        there = storage.sizes_in(folder, self.storage_options)
        for name in manifest["parts"]:
            if name not in there:
                raise FileNotFoundError(
                    f"{printable(folder)}/{name} is missing: give the run's imgcurate run command again, which makes it anew"
                )
        return [f"{folder}/{name}" for name in manifest["parts"]]

    @property
    def report(self) -> str:
        """The URL of the page about the run."""
        return f"{self.url}/{REPORT}"

    @property
    def has_report(self) -> bool:
        """Whether that page is there."""
        fs, path = storage.open_filesystem(self.report, self.storage_options)
        return bool(fs.isfile(path))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, whole."""
        with storage.open_atomic(f"{self.url}/{name}", self.storage_options) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    def distrusted(self) -> dict[str, int]:
        """Return how often each shard had other bytes than its size and time said."""
        return self._read(f"{WORK}/distrusted.json") or {}

    def distrust(self, url: str) -> None:
        """Take note that a shard is not what its size and time say, so that all that was made of it is made again."""
        known = self.distrusted()
        self.write_json(f"{WORK}/distrusted.json", {**known, url: known.get(url, 0) + 1})

    def make_room(self, output: str, key: str) -> None:
        """Remove an output, and those made from it, unless it is of this `key`: what has the key is gone on with.

        So a run's outputs are never mixed with another's; and without manifest.json a run has not finished.
        """
        known = self._read(f"{WORK}/outputs.json") or {}
        if known.get(output) == key:
            return
        # In this order, so that what is left of a stop in between is known to be unfinished.
        for name in ("manifest.json", "shards.parquet", "shards"):
            self.remove(name)
        if self.owns_files(known):
            files.remove(self.url, self.table("written"), self.storage_options)
        kept = {} if output == "images.parquet" else {"images.parquet": known.get("images.parquet")}
        if not kept:
            self.remove("images.parquet")
        self.write_json(f"{WORK}/outputs.json", {**kept, output: key})

    def owns_files(self, outputs: Mapping[str, str] | None = None) -> bool:
        """Tell whether the files that are here are a run's, by what it has noted, and where that was removed by their account."""
        outputs = outputs or self._read(f"{WORK}/outputs.json") or {}
        return "files" in outputs or bool(files.accounts_in(self.url, self.storage_options))

    def refuse_others_files(self) -> None:
        """Raise where files are in the way of those that a run is to write."""
        if not self.owns_files() and any(files.names_below(f"{self.url}/{files.FOLDER}", self.storage_options)):
            raise FileExistsError(f"{self.url}/{files.FOLDER} holds files that no run wrote; name another folder")

    def remove_unfinished(self) -> None:
        """Remove what processes that were killed have left half-written or begun."""
        fs, path = storage.open_filesystem(self.url, self.storage_options)
        # Nowhere else: a folder beside them may be another run's, which is on.
        here = [fs.find(path, maxdepth=1), *(fs.find(f"{path}/{name}") for name in _FOLDERS)]
        for file in dict.fromkeys(chain.from_iterable(here)):
            name = file.rpartition("/")[2]
            if name.startswith(".unfinished-") or (name.endswith(".begun") and f"/{WORK}/" in file):
                fs.rm_file(file)

    def graphs(self) -> dict[str, str]:
        """Return the URLs of the graphs of duplicates, by the keys of their searches."""
        fs, path = storage.open_filesystem(f"{self.url}/{WORK}/{GRAPHS}", self.storage_options)
        names = [name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)] if fs.exists(path) else []
        return {name: f"{self.url}/{WORK}/{GRAPHS}/{name}" for name in names}

    def remove_graphs(self, kept: Collection[str]) -> None:
        """Remove the graphs of duplicates of other searches."""
        for key, url in self.graphs().items():
            if key not in kept:
                fs, path = storage.open_filesystem(url, self.storage_options)
                fs.rm(path, recursive=True)

    def remove(self, name: str) -> None:
        """Remove an output's files, and nothing that somebody else put beside them."""
        fs, path = storage.open_filesystem(f"{self.url}/{name}", self.storage_options)
        with contextlib.suppress(FileNotFoundError):
            if name not in _NAMES:
                fs.rm_file(path)
                return
            for file in fs.ls(path, detail=False):
                if is_output(name, file.rpartition("/")[2]):
                    fs.rm_file(file)
            with contextlib.suppress(OSError):
                fs.rmdir(path)

    def _read(self, name: str) -> Any:
        content = storage.read_if_there(f"{self.url}/{name}", self.storage_options)
        if content is None:
            return None
        try:
            return json.loads(content)
        except ValueError as problem:
            raise ValueError(
                f"{self.url}/{name} is damaged ({problem}): remove it and run again with --overwrite; parts that are whole are not computed again"
            ) from None


def refuse_inside(out: str | os.PathLike[str], inputs: storage.Paths) -> None:
    """Raise where an input, as it is named, would take what is written into the output for its own the next time."""
    target = _real(storage.absolute(out)) if storage.is_local(os.fspath(out)) else os.fspath(out).rstrip("/")
    for given in storage.patterns(inputs):
        place = os.path.abspath(given) if storage.is_local(given) else given.rstrip("/")
        # A path that is there is that path, and no pattern.
        pattern = None if storage.is_there(given) else glob_translate(place)
        written = (
            f"{target}/shards/00000.tar",
            f"{target}/files/0.jpg",
            f"{target}/images.parquet/part.00000.parquet",
        )
        if target.startswith(f"{_real(place)}/") or (pattern and any(re.match(pattern, name) for name in written)):
            raise FileExistsError(
                f"the output {os.fspath(out)} lies in {given}, which is read to the bottom: name a folder beside it, or the shards as "
                f"{given.partition('*')[0].rstrip('/')}/*.tar"
            )


def _refuse_around(url: str, units: Sequence[Unit]) -> None:
    """Raise where the output holds an input, which would lie among the files that a run writes and replaces."""
    target = _real(url)
    # Links are followed of shards and of folders, not of each image.
    named: dict[str, str] = {}
    for unit in units:
        if isinstance(unit.content, References):
            named |= {name: name for name in unit.readable}
        else:
            named |= {unit.url: unit.url, **{name.rpartition("/")[0]: name for name in unit.etags}}
    for name in named.values():
        if _real(name).startswith(f"{target}/"):
            raise FileExistsError(
                f"{printable(name)} is a source and lies where the output would be written ({printable(url)}); name another folder"
            )


@contextlib.contextmanager
def open_folder(
    out: str | os.PathLike[str], units: Sequence[Unit], overwrite: bool, storage_options: storage.Options
) -> Iterator[Folder]:
    """See that a folder can be a run's, and hold it.

    Raises
    ------
    FileExistsError
        As `check_folder`.
    BlockingIOError
        Where another run is on in it.
    """
    url = check_folder(out, units, overwrite, storage_options)
    if storage.is_local(url):
        os.makedirs(f"{url}/{WORK}", exist_ok=True)
    with locked(f"{url}/{WORK}/lock", storage_options):
        yield Folder(url, storage_options)


def check_folder(
    out: str | os.PathLike[str], units: Sequence[Unit], overwrite: bool, storage_options: storage.Options
) -> str:
    """See that a folder can be a run's, and return its URL; nothing is made or changed.

    Raises
    ------
    FileExistsError
        Where it is a file, holds sources, or holds something else and `overwrite` is false.
    """
    fs, path = storage.open_filesystem(os.fspath(out), storage_options)
    if fs.isfile(path):
        raise FileExistsError(f"{out} is a file; name a folder for the output")
    url = storage.absolute(out, storage_options).rstrip("/")
    _refuse_around(url, units)
    there = {name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)} if fs.exists(path) else set()
    if WORK not in there:
        if there and not overwrite:
            raise FileExistsError(
                f"{out} is not empty; name another folder, or replace the run that is there with overwrite=True"
            )
        mine = there & set(OUTPUTS)
        if mine and mine <= {"shards", "files"}:  # a run writes images.parquet first
            raise FileExistsError(
                f"{out}/{min(mine)} is not of an earlier run: no images.parquet lies beside it; name another folder"
            )
    return url


def _real(url: str) -> str:
    """Return where a path leads, through links and ``..``: two names of one folder must not make its files outputs to be replaced."""
    path = storage.path_of(url)
    return os.path.realpath(path) if storage.is_local(path) else url
