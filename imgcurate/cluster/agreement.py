"""Whether this process and a cluster that others run agree: on the versions of packages, and on what a path means."""

from __future__ import annotations

import contextlib
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import distributed

from imgcurate import storage
from imgcurate.cluster.workers import ask_all, wait_for_worker

# What a difference breaks: pickled functions, tasks and frames. The number of parts of the version that must be equal.
_MUST_AGREE = {"python": 2, "imgcurate": 3, "dask": 2, "distributed": 2, "numpy": 1, "pandas": 1}
_SHOULD_AGREE = (
    "cloudpickle",
    "pillow",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "torch",
    "transformers",
    "xxhash",
)
# Where graphs are unpacked only what they name is needed.
_OF_THE_SCHEDULER = ("python", "imgcurate", "dask", "distributed", "cloudpickle", "numpy", "pandas")
_MOST_FOLDERS = 16
_WORKER_SECONDS = 60


def check_versions(client: distributed.Client) -> None:
    """Compare the packages of this process with those of the scheduler and of each worker.

    Parameters
    ----------
    client : distributed.Client

    Raises
    ------
    ValueError
        Where imgcurate cannot be imported, or a version differs that pickled functions, tasks or frames do not survive.

    Warns
    -----
    UserWarning
        One sentence, where other packages differ.
    """
    for where in _without_imgcurate(client):
        raise ValueError(f"{where} cannot import imgcurate: install it there as it is here (pip install imgcurate)")
    answer: Any = client.get_versions(packages=["imgcurate", *_SHOULD_AGREE])
    here = answer["client"]["packages"]
    others = {f"worker {address}": packages["packages"] for address, packages in answer["workers"].items()}
    scheduler = {name: answer["scheduler"]["packages"].get(name) for name in _OF_THE_SCHEDULER}
    _compare(here, {f"the scheduler at {client.scheduler.address}": scheduler, **others})


def _without_imgcurate(client: distributed.Client) -> list[str]:
    """Look for imgcurate in all processes: it may be on the path without being installed, and the other way round."""

    # A function within a function is sent as code, and so runs where its module is not there.
    def is_there() -> bool:
        import importlib.util

        return importlib.util.find_spec("imgcurate") is not None

    found = {f"worker {worker}": there for worker, there in ask_all(client, is_there).items()}
    with contextlib.suppress(ValueError):  # a scheduler may be set up to run nothing for its clients
        found[f"the scheduler at {client.scheduler.address}"] = client.run_on_scheduler(is_there)
    return [where for where, there in found.items() if not there]


def _compare(here: Mapping[str, str | None], others: Mapping[str, Mapping[str, str | None]]) -> None:
    """Raise, or warn, where versions of `others` (process to package to version) differ from those here.

    Examples
    --------
    >>> _compare({"pandas": "3.0.1"}, {"worker a": {"pandas": "2.3.0"}})
    Traceback (most recent call last):
    ValueError: worker a has pandas 2.3.0 and this process 3.0.1: install the same version in both
    """
    for package, parts in _MUST_AGREE.items():
        for where, packages in others.items():
            if _parts(packages.get(package), parts) != _parts(here.get(package), parts):
                raise ValueError(f"{_difference(where, package, packages, here)}: install the same version in both")
    compared = {*_MUST_AGREE, *_SHOULD_AGREE} - {"python"}
    differences = [
        _difference(where, package, packages, here)
        for where, packages in others.items()
        for package in packages
        if package in compared and _parts(packages[package], 9) != _parts(here.get(package), 9)
    ]
    if differences:
        rest = len(differences) - 1
        more = f" (and {rest} more difference{'s' * (rest > 1)})" if rest else ""
        warnings.warn(
            f"{differences[0]}{more}: results may differ from worker to worker, so install the same versions everywhere",
            stacklevel=4,
        )


def _parts(version: str | None, parts: int) -> list[str] | None:
    """Return the first parts of a version; builds of one version, as torch's for CPU and GPU, are the same."""
    return None if version is None else version.partition("+")[0].split(".")[:parts]


def _difference(where: str, package: str, there: Mapping[str, str | None], here: Mapping[str, str | None]) -> str:
    versions = [(found.get(package) or "").partition(".final")[0] for found in (there, here)]
    has = f"{package} {versions[0]}" if versions[0] else f"no {package}"
    return f"{where} has {has} and this process {versions[1] or 'none'}"


def check_paths(client: distributed.Client, urls: Iterable[str], out: str) -> None:
    """See that local paths mean on every worker what they mean here: a few inputs are there, and what a worker writes is seen here.

    Parameters
    ----------
    client : distributed.Client
    urls : iterable of str
        Inputs, as `storage.expand` writes them. One of each folder is looked at, which is a file here; those of stores are not.
    out : str
        The folder to write to. It is made where it is not there.

    Raises
    ------
    ValueError
        Naming a worker and a path.
    """
    samples = _one_of_each_folder(url for url in urls if storage.is_local(url))
    places = [out] if storage.is_local(out) else []
    if not samples and not places:
        return
    wait_for_worker(client, _WORKER_SECONDS)
    sizes = {path: os.path.getsize(path) for path in samples}
    remedy = "use a disk that all machines mount at the same path, or a store such as s3://"
    for worker, seen in ask_all(client, _sizes, samples).items():
        for path, size in seen.items():
            if size is None:
                raise ValueError(f"worker {worker} does not see {path}, which this machine does: {remedy}")
            if size != sizes[path]:
                raise ValueError(
                    f"worker {worker} sees another file at {path} ({size:,} bytes, here {sizes[path]:,}): {remedy}"
                )
    for folder in places:
        _check_writing(client, folder, remedy)


def _one_of_each_folder(paths: Iterable[str]) -> list[str]:
    """Return the first path of each folder that is a file's here, of the first folders: what cannot be read becomes a row's error, or is
    refused, when it is listed."""
    chosen: dict[str, str] = {}
    for path in paths:
        folder = os.path.dirname(path)
        if folder not in chosen and os.path.isfile(path):
            chosen[folder] = path
        if len(chosen) == _MOST_FOLDERS:
            break
    return list(chosen.values())


def _check_writing(client: distributed.Client, folder: str, remedy: str) -> None:
    """Let each worker write a file, see it here, and remove it."""
    os.makedirs(folder, exist_ok=True)
    token = f".probe-{uuid.uuid4().hex}"
    written = ask_all(client, _write_probe, folder, token)
    unseen = []
    for worker, (name, problem) in written.items():
        if problem is None and not _remove(os.path.join(folder, name)):
            unseen.append(worker)
    if unseen:
        client.run(_remove_probes, folder, token, workers=unseen, on_error="ignore")
        raise ValueError(f"what worker {unseen[0]} writes into {folder} is not seen on this machine: {remedy}")
    for worker, (_, problem) in written.items():
        if problem is not None:
            raise ValueError(f"worker {worker} cannot write into {folder} ({problem}): {remedy}")


def _sizes(paths: Sequence[str]) -> dict[str, int | None]:
    return {path: os.path.getsize(path) if os.path.isfile(path) else None for path in paths}


def _write_probe(folder: str, token: str) -> tuple[str, str | None]:
    name = f"{token}-{uuid.uuid4().hex}"
    try:
        with open(os.path.join(folder, name), "wb"):
            pass
    except OSError as problem:
        return name, problem.strerror
    return name, None


def _remove_probes(folder: str, token: str) -> None:
    for name in os.listdir(folder):
        if name.startswith(token):
            _remove(os.path.join(folder, name))


def _remove(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        return True
    return False
