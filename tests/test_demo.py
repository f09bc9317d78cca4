"""The demo's shards: real photos, known copies, and samples that cannot be read."""

import collections
import io
import json
import random
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from imgcurate import demo

BAD = {"truncated", "empty", "not-found"}


def read(directory: Path) -> dict[str, dict[str, bytes]]:
    """image_id -> {extension: bytes}, read with nothing but tarfile."""
    samples: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                samples[f"{path.stem}/{key}"][extension] = content.read()
    return dict(samples)


def image_of(sample: dict[str, bytes]) -> bytes:
    (extension,) = sample.keys() - {"txt", "json"}
    return sample[extension]


@pytest.fixture(scope="module")
def photos() -> list[demo.Photo]:
    return demo.photos()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[demo.Planted]]:
    directory = tmp_path_factory.mktemp("demo") / "shards"
    return directory, demo.make_shards(directory)


def test_photos_are_found_in_every_package_that_is_installed(photos: list[demo.Photo]) -> None:
    assert {photo.package for photo in photos} == set(demo._PHOTOS)
    assert len(photos) == sum(len(files) for _, _, files in demo._PHOTOS.values())


def test_every_photo_has_a_licence(photos: list[demo.Photo]) -> None:
    assert {photo.license for photo in photos} == {"CC BY 2.0", "CC0, public domain or no known restrictions"}


def test_every_photo_decodes_and_has_its_own_name_and_caption(photos: list[demo.Photo]) -> None:
    for photo in photos:
        with Image.open(photo.path) as image:
            image.draft("RGB", (64, 64))
            image.load()
    assert len({photo.name for photo in photos}) == len({photo.caption for photo in photos}) == len(photos)


def test_photos_keep_the_bytes_that_their_package_ships(shards, photos: list[demo.Photo]) -> None:
    samples = {image_id.partition("/")[2]: sample for image_id, sample in read(shards[0]).items()}
    for photo in photos:
        assert image_of(samples[photo.name]) == photo.path.read_bytes()


def test_every_sample_has_a_caption_and_metadata(shards) -> None:
    for image_id, sample in read(shards[0]).items():
        assert len(sample) == 3, image_id
        assert sample["txt"].decode().strip()
        about = json.loads(sample["json"])
        if image_id.partition("/")[2] not in BAD:
            assert about["package"] in demo._PHOTOS
            assert about["license"] and about["file"]


def test_every_planted_copy_and_its_original_are_in_different_shards(shards) -> None:
    directory, planted = shards
    samples = read(directory)
    assert len(planted) >= 20
    for each in planted:
        assert each.copy in samples and each.original in samples
        assert each.copy.partition("/")[0] != each.original.partition("/")[0]
        about = json.loads(samples[each.copy]["json"])
        assert about["copy_of"] == each.original.partition("/")[2]
        assert about["change"] == each.change


def test_nothing_but_photos_planted_copies_and_bad_samples_is_in_the_shards(shards, photos: list[demo.Photo]) -> None:
    directory, planted = shards
    keys = collections.Counter(image_id.partition("/")[2] for image_id in read(directory))
    copies = [each.copy.partition("/")[2] for each in planted]
    assert keys == collections.Counter([*copies, *BAD, *(photo.name for photo in photos)])


def test_copies_are_made_as_their_change_says(shards) -> None:
    directory, planted = shards
    samples = read(directory)
    changes = collections.Counter(each.change for each in planted)
    assert len(changes) == 3 and min(changes.values()) >= 5
    for each in planted:
        size = Image.open(io.BytesIO(image_of(samples[each.original]))).size
        if each.change.startswith("half"):
            size = (size[0] // 2, size[1] // 2)
        assert Image.open(io.BytesIO(image_of(samples[each.copy]))).size == size
        assert image_of(samples[each.copy]) != image_of(samples[each.original])


def test_every_copy_is_smaller_than_its_original_in_pixels_or_else_in_bytes(shards) -> None:
    directory, planted = shards
    samples = read(directory)

    def size(image_id: str) -> tuple[int, int]:
        image = image_of(samples[image_id])
        width, height = Image.open(io.BytesIO(image)).size
        return width * height, len(image)

    for each in planted:
        assert size(each.copy) < size(each.original), each


def test_bad_samples_cannot_be_decoded(shards) -> None:
    bad = [sample for image_id, sample in read(shards[0]).items() if image_id.partition("/")[2] in BAD]
    assert len(bad) == len(BAD)
    for sample in bad:
        with pytest.raises(OSError):
            Image.open(io.BytesIO(image_of(sample))).load()


def test_two_calls_give_identical_files(shards, tmp_path: Path) -> None:
    directory, planted = shards
    random.seed(1)
    assert demo.make_shards(tmp_path) == planted
    assert [path.name for path in sorted(tmp_path.iterdir())] == [path.name for path in sorted(directory.iterdir())]
    for path in directory.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_another_seed_copies_photos_in_other_ways(shards, tmp_path: Path) -> None:
    def copied(planted: list[demo.Planted]) -> set[str]:
        return {each.copy.partition("/")[2] for each in planted}

    assert copied(demo.make_shards(tmp_path, seed=1)) != copied(shards[1])


@pytest.mark.parametrize("samples_per_shard", [7, 10_000])
def test_copies_leave_the_shard_of_their_original_whatever_the_shard_size(
    tmp_path: Path, samples_per_shard: int
) -> None:
    planted = demo.make_shards(tmp_path, samples_per_shard=samples_per_shard)
    samples = read(tmp_path)
    sizes = collections.Counter(image_id.partition("/")[0] for image_id in samples)
    assert len(sizes) == max(2, -(-len(samples) // samples_per_shard))
    assert all(each.copy.partition("/")[0] != each.original.partition("/")[0] for each in planted)


def test_a_directory_that_holds_shards_is_refused(shards) -> None:
    with pytest.raises(FileExistsError, match="empty directory"):
        demo.make_shards(shards[0])


def test_a_shard_needs_at_least_one_sample(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        demo.make_shards(tmp_path, samples_per_shard=0)


def test_too_few_photos_are_one_sentence_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Installed packages are looked for on sys.path: a path with none of them on it.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"found 0 of them; pip install 'imgcurate\[small\]'"):
        demo.photos()


def test_a_copy_is_found_when_it_shares_its_kept_image_with_its_original() -> None:
    planted = [demo.Planted(f"1/{copy}", "0/cat", "half") for copy in ("a", "b", "c")]
    # The original and one copy duplicate another copy; the third was kept apart.
    assert demo.found(planted, {"0/cat": "1/a", "1/b": "1/a"}) == planted[:2]
    # A chain, as the rule "pointwise" gives it.
    assert demo.found(planted, {"0/cat": "1/a", "1/a": "1/c"}) == [planted[0], planted[2]]
    assert demo.found(planted, {"1/a": "0/dog"}) == []
