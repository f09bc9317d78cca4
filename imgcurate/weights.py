"""Files of model weights: where they lie, how they come down, what is in them, and which ones a result was made with.

Weights are only ever read as arrays: safetensors, or a PyTorch state dict under ``weights_only=True``, which runs no
code from the file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import numpy as np

# What makes a model what it is; a directory's other files (README, images) do not change its fingerprint.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.zip", "*.pb", "*.index", "*.data-?????-of-?????")
_CONFIGURATION = ("*.json", "*.txt")
_TIMEOUT_SECONDS = 60
_VARIABLE = "IMGCURATE_MODEL_DIR"


def cache_dir() -> Path:
    """Return imgcurate's own cache directory: ``$XDG_CACHE_HOME/imgcurate``, or ``~/.cache/imgcurate``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcurate"


def set_model_dir(model_dir: str | os.PathLike[str]) -> None:
    """Let this process look for models in a directory, as ``IMGCURATE_MODEL_DIR`` does, where a verb is given no ``model_dir``.

    Raises
    ------
    FileNotFoundError
        Where it does not exist.
    """
    path = Path(model_dir).expanduser().absolute()
    if not path.is_dir():
        raise FileNotFoundError(
            f"model_dir {os.fspath(model_dir)!r} is not a directory; give the one that holds the models"
        )
    os.environ[_VARIABLE] = str(path)


def chosen_dir(model_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return `model_dir`, or where none is given the directory that ``IMGCURATE_MODEL_DIR`` names, or None.

    Raises
    ------
    FileNotFoundError
        Where that directory does not exist.
    """
    if model_dir is not None:
        return Path(model_dir)
    named = os.environ.get(_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"{_VARIABLE} names {named!r}, which is not a directory; set it to the one that holds the models, or unset it"
        )
    return path


def find(
    model_dir: str | os.PathLike[str], names: Iterable[str], fits: Callable[[Path], bool] = lambda path: True
) -> Path | None:
    """Return the first of `names` that lies in `model_dir`.

    Parameters
    ----------
    model_dir : path
        A directory, or the file itself, which is then returned whatever its name.
    names : iterable of str
        Paths relative to the directory, the most specific first.
    fits : callable
        Asked of each candidate in a directory; one that does not fit is passed over. Default: all fit.

    Returns
    -------
    pathlib.Path or None
        An absolute path; None where the directory has no such file.

    Raises
    ------
    FileNotFoundError
        Where `model_dir` does not exist.
    """
    path = Path(model_dir).expanduser().absolute()
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"model_dir {os.fspath(model_dir)!r} does not exist; give the directory or file that holds the weights"
        )
    candidates = (path / name for name in names)
    return next((candidate for candidate in candidates if candidate.is_file() and fits(candidate)), None)


def from_hub(repo: str, filename: str, advice: str) -> Path:
    """Return a file of a Hugging Face model repository, from the hub's cache or else by a download into it.

    Parameters
    ----------
    repo, filename : str
    advice : str
        What the user does where neither works: completes the sentence "... cannot be downloaded: ...; ".

    Raises
    ------
    FileNotFoundError
        Where the cache does not have the file and it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Asked first because a download asks the hub for news of a file that is already here.
        return Path(hf_hub_download(repo, filename, local_files_only=True)).absolute()
    except LocalEntryNotFoundError:
        pass
    files_on_hub(repo, filename, advice)
    try:
        return Path(hf_hub_download(repo, filename)).absolute()
    except Exception as problem:  # The hub's HTTP library has errors of its own, which are no OSError.
        raise FileNotFoundError(_not_downloaded(filename, repo, problem, advice)) from problem


def files_on_hub(repo: str, wanted: str, advice: str) -> set[str]:
    """Return the names of the files of a model repository, by one question that fails at once where there is no network.

    Asking for a file itself is tried again for half a minute.

    Parameters
    ----------
    repo : str
    wanted, advice : str
        The file that is looked for, and what the user does where the hub is out of reach, for the error.

    Raises
    ------
    FileNotFoundError
        Where the hub does not answer, or has no such repository.
    """
    from huggingface_hub import model_info

    try:
        return {sibling.rfilename for sibling in model_info(repo).siblings or ()}
    except Exception as problem:
        # The hub's client raises OSError, ValueError and those of the HTTP library of its version.
        raise FileNotFoundError(_not_downloaded(wanted, repo, problem, advice)) from problem


def _not_downloaded(filename: str, repo: str, problem: Exception, advice: str) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    unreachable = isinstance(problem, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError)
    why = "the hub is out of reach, or HF_HUB_OFFLINE is set" if unreachable else _first_line(problem)
    return f"{filename} of {repo} cannot be downloaded ({why}); {advice}"


def download(url: str, sha256: str, destination: str | os.PathLike[str], advice: str = "") -> Path:
    """Download a file whose checksum is known.

    Parameters
    ----------
    url : str
    sha256 : str
        Hex digest that the content must have.
    destination : path
        Appears only when the download is complete and right; its directory is made.
    advice : str
        What the user does where it fails; ends the error's sentence.

    Returns
    -------
    pathlib.Path
        `destination`.

    Raises
    ------
    FileNotFoundError
        Where the file cannot be fetched, or ``HF_HUB_OFFLINE`` forbids it.
    ValueError
        Where its checksum is another.
    """
    from huggingface_hub.constants import is_offline_mode

    ending = f"; {advice}" if advice else ""
    if is_offline_mode():
        raise FileNotFoundError(f"{url} is not downloaded because HF_HUB_OFFLINE is set{ending}")
    target = Path(destination).expanduser().absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as temporary:
            arrived = Path(temporary) / target.name
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, arrived.open("wb") as file:
                shutil.copyfileobj(response, file)
            found = fingerprint(arrived)
            if found == sha256:
                os.replace(arrived, target)
    except (OSError, HTTPException) as problem:
        raise FileNotFoundError(
            f"{url} cannot be downloaded to {str(target)!r} ({_first_line(problem)}){ending}"
        ) from problem
    if found != sha256:
        raise ValueError(f"{url} is not the file expected and is not kept: sha256 {found}, not {sha256}{ending}")
    return target


@functools.lru_cache(maxsize=256)
def _digest_of_file(path: Path, size: int, changed: int) -> str:
    # Gigabytes, which a run asks for in several places; a file that was written again is read again.
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def fingerprint(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str:
    """Return what tells one set of weights from another, wherever they lie.

    Parameters
    ----------
    paths : path or sequence of paths
        Files, or directories, of which the weight and configuration files count (not hidden ones).

    Returns
    -------
    str
        Hex sha256. Of one file: of its content, as ``sha256sum`` prints it. Of a directory: of its files' relative
        names and digests. Of several paths: of their fingerprints in the order given.

    Raises
    ------
    FileNotFoundError
        Where a path does not exist, or a directory holds no weights.
    """
    if not isinstance(paths, str | os.PathLike):
        return _digest_of_lines(fingerprint(path) for path in paths)
    path = Path(paths)
    if path.is_dir():
        files = sorted((file.relative_to(path), file) for file in _model_files(path))
        if not files:
            raise FileNotFoundError(f"directory {str(path)!r} holds no model weights or configuration")
        return _digest_of_lines(f"{name.as_posix()} {fingerprint(file)}" for name, file in files)
    if not path.is_file():
        raise FileNotFoundError(f"weights {str(path)!r} do not exist")
    stat = path.stat()
    return _digest_of_file(path.absolute(), stat.st_size, stat.st_mtime_ns)


def verify(path: str | os.PathLike[str], expected: str) -> None:
    """Check that this machine has the weights that a client found.

    Raises
    ------
    FileNotFoundError
        Where `path` does not exist here.
    ValueError
        Where its fingerprint is not `expected`.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"a worker does not have the weights {os.fspath(path)!r}; put them where every worker sees them under one "
            "path and name that as model_dir"
        )
    if fingerprint(path) != expected:
        raise ValueError(
            f"the weights {os.fspath(path)!r} are not those the client chose: they changed since, or this worker has "
            "others under that path; give every worker the same file and build the frame again"
        )


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the arrays in a safetensors file, from its header alone.

    Raises
    ------
    ValueError
        Where the file is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as problem:
        raise ValueError(f"{os.fspath(path)!r} is not a safetensors file ({_first_line(problem)})") from problem


def read_arrays(file: str | os.PathLike[str] | BinaryIO, source: str | None = None) -> dict[str, np.ndarray]:
    """Read a safetensors file or a PyTorch state dict as NumPy arrays, running no code from it.

    Parameters
    ----------
    file : path or binary file
        A path that ends in ``.safetensors`` is that; anything else is a state dict.
    source : str, optional
        What errors call the file. Default: its path.

    Returns
    -------
    dict of str to numpy.ndarray, float64
        Float64 holds every value of the narrower types exactly.

    Raises
    ------
    ValueError
        Where the file holds anything but named arrays.
    """
    name = source or repr(file if hasattr(file, "read") else os.fspath(file))
    try:
        state = _read_state(file)
    except pickle.UnpicklingError as problem:
        # PyTorch's own message advises weights_only=False, which would run the file's code.
        raise ValueError(
            f"{name} cannot be read as model weights: it is damaged, or holds more than arrays"
        ) from problem
    except Exception as problem:  # Damaged files make the readers raise all kinds.
        raise ValueError(f"{name} cannot be read as model weights ({_first_line(problem)})") from problem
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{name} holds no state dict (named arrays); save it with torch.save(model.state_dict(), ...)")
    return {str(key): np.asarray(value, dtype=np.float64) for key, value in state.items()}


def check_arrays(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: str, model: str
) -> None:
    """Check that `arrays` are the weights of a model.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
    shapes : mapping of str to tuple of int
        Every array the model needs, with its shape.
    source : str
        The file, for the message.
    model : str
        What the weights are meant for, for the message.

    Raises
    ------
    ValueError
        Where an array is missing, has another shape, or holds NaN or infinite values.

    Examples
    --------
    >>> check_arrays({"w": np.zeros(3)}, {"w": (2,)}, "'head.pth'", "the demo head")
    Traceback (most recent call last):
        ...
    ValueError: 'head.pth' does not hold the demo head: 'w' has shape (3,), not (2,)
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{source} does not hold {model}: it has no {name!r}")
        if arrays[name].shape != shape:
            raise ValueError(f"{source} does not hold {model}: {name!r} has shape {arrays[name].shape}, not {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{source} is damaged: {name!r} of {model} holds NaN or infinite values")


def _read_state(file: str | os.PathLike[str] | BinaryIO) -> object:
    if isinstance(file, str | os.PathLike) and os.fspath(file).endswith(".safetensors"):
        from safetensors.numpy import load_file

        return load_file(file)
    import torch

    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        return state
    # NumPy takes neither parameters that want gradients nor bfloat16.
    return {name: value.detach().double().numpy() for name, value in state.items() if isinstance(value, torch.Tensor)}


def _model_files(directory: Path) -> Iterable[Path]:
    found = {file for pattern in _WEIGHTS + _CONFIGURATION for file in directory.rglob(pattern) if file.is_file()}
    return (file for file in found if not any(part.startswith(".") for part in file.relative_to(directory).parts))


def _digest_of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")
