"""A run: its options, its shards and their versions, its folder, and the cluster that it is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgcurate import storage, vectors
from imgcurate.cluster import backend
from imgcurate.run.folder import Folder
from imgcurate.run.options import Options
from imgcurate.run.steps import Steps
from imgcurate.sources.webdataset import Shard


class Job:
    """What every step of a run is given.

    Attributes
    ----------
    options : Options
    shards : list of Shard
    models : dict
        The encoder and the heads, with their fingerprints.
    place : Folder
    steps : Steps
    versions : dict of str to str
        What a shard's parts depend on, by its URL: its etag, and how often its bytes were others than that said.
    retry : bool
        Whether images that could not be read are read again.
    """

    def __init__(
        self, options: Options, shards: list[Shard], models: Mapping[str, Any], place: Folder, steps: Steps
    ) -> None:
        self.options, self.shards, self.models, self.place, self.steps = options, shards, models, place, steps
        doubts = place.distrusted()
        self.versions = {
            shard.url: f"{shard.etag}+{doubts[shard.url]}" if shard.url in doubts else str(shard.etag)
            for shard in shards
        }
        self.backend = backend()
        self.like = vectors.empty_on(self.backend)
        self.retry = True

    @property
    def storage_options(self) -> storage.Options:
        """For the file systems of shards and output."""
        return self.place.storage_options

    def record(self) -> dict[str, Any]:
        """Return what the run is started with: its options and models as far as they matter, and its sources."""
        models = {
            name: {"name": str(model.get("name") or model["path"]), "fingerprint": model["fingerprint"]}
            for name, model in self.models.items()
        }
        return {"format": 1, "options": self.options.effective(), "models": models, "sources": self.versions}
