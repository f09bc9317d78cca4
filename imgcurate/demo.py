"""Shards to try imgcurate on: real photos that installed packages carry, with known copies of some of them planted.

Nothing is downloaded. The packages (extra `small`) state the licences of their photos, and are not imported for them.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

#: With fewer photos the shards would show nothing.
_FEWEST = 10


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo that an installed package carries.

    Attributes
    ----------
    name : str
        Its key in the shards; unique, without dots.
    path : pathlib.Path
        The file as the package installed it.
    caption : str
    package : str
        The distribution, as ``pip`` names it.
    license : str
        Of the package's photos, as far as the package states it.
    """

    name: str
    path: Path
    caption: str
    package: str
    license: str


@dataclass(frozen=True, slots=True)
class Planted:
    """A copy that was put into the shards, and what it is a copy of.

    Attributes
    ----------
    copy, original : str
        Their ``image_id``: the shard's name without extension, a slash, and the key.
    change : str
        What was done to the original.
    """

    copy: str
    original: str
    change: str


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    extension: str
    data: bytes
    caption: str
    about: Mapping[str, str]


def photos(fewest: int = _FEWEST) -> list[Photo]:
    """Find the photos of the packages that are installed.

    Parameters
    ----------
    fewest : int, default 10
        How many there must be.

    Returns
    -------
    list of Photo
        In a fixed order. A package that is not installed, or a file its version does not carry, is left out.

    Raises
    ------
    FileNotFoundError
        Where fewer are found.
    """
    there = []
    for package, (license_, folder, files) in _PHOTOS.items():
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        for file, (name, caption) in files.items():
            path = Path(str(distribution.locate_file(f"{folder}/{file}")))
            if path.is_file():
                there.append(Photo(name, path, caption, package, license_))
    if len(there) < fewest:
        raise FileNotFoundError(
            f"the demo needs the photos that {', '.join(_PHOTOS)} carry and found {len(there)} of them; "
            "pip install 'imgcurate[small]'"
        )
    return there


def make_shards(directory: str | os.PathLike[str], *, seed: int = 0, samples_per_shard: int = 20) -> list[Planted]:
    """Write WebDataset shards of real photos, with planted copies and three samples that no decoder can read.

    Every photo is copied, every third of them in three ways: re-encoded, at half size, and recoloured; the others in one. A copy never
    lies in the shard of its original. Photos keep the bytes that their package ships.

    Parameters
    ----------
    directory : path
        Made where it does not exist. Gets ``00000.tar``, ``00001.tar``, ...
    seed : int
        Decides how photos are copied and where samples lie. The same seed and packages give the same bytes.
    samples_per_shard : int
        About how many samples a shard gets; there are never fewer than two shards.

    Returns
    -------
    list of Planted
        Every copy that was planted.

    Raises
    ------
    FileExistsError
        Where the directory holds tar files already.
    FileNotFoundError
        Where fewer than ten photos are installed.
    ValueError
        Where `samples_per_shard` is less than 1.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard is {samples_per_shard}; it must be at least 1")
    directory = Path(directory)
    if any(directory.glob("*.tar")):
        raise FileExistsError(f"'{directory}' holds tar files already; name an empty directory for the demo's shards")
    rng = random.Random(seed)
    originals = photos()
    rng.shuffle(originals)
    copies = [list(_copies(photo, i)) for i, photo in enumerate(originals)]
    bad = _unreadable(originals)
    total = len(originals) + sum(map(len, copies)) + len(bad)
    shards: list[list[_Sample]] = [[] for _ in range(max(2, math.ceil(total / samples_per_shard)))]

    planted = []
    for i, photo in enumerate(originals):
        home = i % len(shards)
        shards[home].append(_original(photo))
        for k, sample in enumerate(copies[i]):
            away = (home + 1 + k % (len(shards) - 1)) % len(shards)
            shards[away].append(sample)
            planted.append(Planted(f"{away:05d}/{sample.key}", f"{home:05d}/{photo.name}", sample.about["change"]))
    for i, sample in enumerate(bad):
        shards[i % len(shards)].append(sample)

    directory.mkdir(parents=True, exist_ok=True)
    for number, samples in enumerate(shards):
        rng.shuffle(samples)
        _write_shard(directory / f"{number:05d}.tar", samples)
    return planted


def found(planted: Iterable[Planted], duplicate_of: Mapping[str, str]) -> list[Planted]:
    """Tell which planted copies were recognised: those that ended up with the same kept image as their original.

    Parameters
    ----------
    planted : iterable of Planted
    duplicate_of : mapping of str to str
        ``image_id`` of each removed image to that of the image it duplicates.

    Returns
    -------
    list of Planted

    Examples
    --------
    >>> copies = [Planted("1/cat-half", "0/cat", "half size"), Planted("1/dog-half", "0/dog", "half size")]
    >>> [each.copy for each in found(copies, {"0/cat": "1/cat-half"})]
    ['1/cat-half']
    """

    def kept(image_id: str) -> str:
        seen = set()
        while image_id in duplicate_of and image_id not in seen:
            seen.add(image_id)
            image_id = duplicate_of[image_id]
        return image_id

    return [each for each in planted if kept(each.copy) == kept(each.original)]


def _original(photo: Photo) -> _Sample:
    return _Sample(photo.name, photo.path.suffix[1:], photo.path.read_bytes(), photo.caption, _about(photo))


def _copies(photo: Photo, i: int) -> Iterator[_Sample]:
    ways = list(_CHANGES) if i % 3 == 0 else [list(_CHANGES)[i % len(_CHANGES)]]
    with Image.open(photo.path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    for way in ways:
        change, edit, quality = _CHANGES[way]
        buffer = io.BytesIO()
        edit(upright).save(buffer, "JPEG", quality=quality)
        about = {**_about(photo), "copy_of": photo.name, "change": change}
        yield _Sample(f"{photo.name}-{way}", "jpg", buffer.getvalue(), photo.caption, about)


def _about(photo: Photo) -> dict[str, str]:
    return {"file": photo.path.name, "package": photo.package, "license": photo.license}


def _unreadable(originals: list[Photo]) -> list[_Sample]:
    whole = next(photo for photo in originals if photo.path.suffix == ".jpg").path.read_bytes()
    page = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"
    contents = {
        "truncated": (whole[: len(whole) // 2], "A photo whose download broke off", "cut in half"),
        "empty": (b"", "A photo of which nothing arrived", "no bytes"),
        "not-found": (page, "A photo that was gone", "an HTML page in place of an image"),
    }
    return [_Sample(key, "jpg", data, caption, {"change": what}) for key, (data, caption, what) in contents.items()]


def _write_shard(path: Path, samples: list[_Sample]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            about = json.dumps(sample.about, indent=1)
            members = {sample.extension: sample.data, "txt": sample.caption.encode(), "json": about.encode()}
            for extension, data in members.items():
                # A fresh TarInfo has no owner and no time, so that the same samples give the same tar.
                member = tarfile.TarInfo(f"{sample.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _half_size(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def _recoloured(image: Image.Image) -> Image.Image:
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.15)).enhance(0.85)


#: Suffix of the copy's key: what was done, how, and the JPEG quality it is saved with: so low that a copy of as many pixels has fewer bytes.
_CHANGES: dict[str, tuple[str, Callable[[Image.Image], Image.Image], int]] = {
    "reencoded": ("re-encoded, JPEG quality 60", lambda image: image, 60),
    "half": ("half the width and height", _half_size, 90),
    "recoloured": ("brightness x1.15, saturation x0.85", _recoloured, 80),
}

#: Package: licence of its photos, their folder, and file -> (name, caption). Left out are drawings, renderings, the second of two
#: photos of one scene, which would be a near-duplicate that nobody planted, and what the package states no licence of.
_PHOTOS: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "scikit-learn": (
        "CC BY 2.0",
        "sklearn/datasets/images",
        {
            "china.jpg": ("pagoda", "A red and green pagoda above trees and a hazy lake"),
            "flower.jpg": ("dahlia", "An orange dahlia in front of dark leaves"),
        },
    ),
    "scikit-image": (
        "CC0, public domain or no known restrictions",
        "skimage/data",
        {
            "astronaut.png": ("astronaut", "Astronaut Eileen Collins in an orange suit beside a flag"),
            "brick.png": ("brick", "A brick wall turned on its side, in grey"),
            "camera.png": ("cameraman", "A man with a camera on a tripod, in black and white"),
            "cell.png": ("cell", "A cell under a microscope, in grey"),
            "chelsea.png": ("cat", "The face of a tabby cat"),
            "clock_motion.png": ("clock", "A wall clock that the camera moved past"),
            "coffee.png": ("coffee", "A cup of espresso on a red saucer"),
            "coins.png": ("coins", "Four rows of ancient coins on a dark ground"),
            "grass.png": ("grass", "Grass from above, in grey"),
            "gravel.png": ("gravel", "Gravel from above, in grey"),
            "hubble_deep_field.jpg": ("galaxies", "Galaxies in the Hubble deep field"),
            "ihc.png": ("tissue", "Stained tissue under a microscope"),
            "retina.jpg": ("retina", "The retina of a left eye"),
            "rocket.jpg": ("rocket", "A rocket on its launch pad at dusk"),
            "text.png": ("writing", "Mathematics written by hand on paper"),
        },
    ),
}
