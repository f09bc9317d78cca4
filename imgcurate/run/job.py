"""A run: its options, what it reads and the versions of that, its folder, and the cluster that it is on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imgcurate import fingerprint, storage, vectors
from imgcurate.cluster import backend
from imgcurate.run import inputs
from imgcurate.run.inputs import Unit
from imgcurate.run.options import Options
from imgcurate.run.state.folder import Folder
from imgcurate.run.tasks.steps import Steps

#: Raise it where a run writes other outputs, so that a run which an earlier version finished writes its own anew.
FORMAT = 2


class Job:
    """What every step of a run is given.

    Attributes
    ----------
    options : Options
    units : list of Unit
        What is read.
    models : dict
        The encoder and the heads, with their fingerprints.
    place : Folder
    steps : Steps
    versions : dict of str to str
        What the parts of a unit depend on, by its URL: the etags of its files, and how often their bytes were others than those said.
    retry : bool
        Whether images that could not be read are read again.
    """

    def __init__(
        self, options: Options, units: Sequence[Unit], models: Mapping[str, Any], place: Folder, steps: Steps
    ) -> None:
        self.options, self.units, self.models, self.place, self.steps = options, units, models, place, steps
        doubts = place.distrusted()
        self.versions = {unit.url: unit.version(doubts) for unit in units}
        self.retry = True

    @property
    def backend(self) -> str:
        """The dataframe backend, which the cluster decides."""
        return backend()

    @property
    def like(self) -> Any:
        """A partition of nothing on the backend."""
        return vectors.empty_on(self.backend)

    @property
    def storage_options(self) -> storage.Options:
        """For the file systems of inputs and output."""
        return self.place.storage_options

    @property
    def noun(self) -> str:
        """What a source is called."""
        return inputs.noun(self.units)

    @property
    def unit_noun(self) -> str:
        """What a unit is called."""
        return "shard" if self.noun == "shard" else "group"

    @property
    def sources(self) -> dict[str, str]:
        """The version of each source: of a shard its own, of a folder of files that of all units in it."""
        versions: dict[str, list[str]] = {}
        for unit in self.units:
            versions.setdefault(unit.source, []).append(self.versions[unit.url])
        return {source: known[0] if len(known) == 1 else fingerprint.of(known) for source, known in versions.items()}

    def record(self) -> dict[str, Any]:
        """Return what the run is started with: its options and models as far as they matter, and its sources."""
        models = {
            name: {"name": str(model.get("name") or model["path"]), "fingerprint": model["fingerprint"]}
            for name, model in self.models.items()
        }
        return {"format": FORMAT, "options": self.options.effective(), "models": models, "sources": self.sources}
