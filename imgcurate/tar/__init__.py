"""The samples of a tar shard: which members they have and which bytes those are, read from headers only.

Sources list shards with this room and sinks copy the byte runs it finds. Follows the conventions of WebDataset
(https://github.com/webdataset/webdataset): a sample's key is a member's path up to the first dot of its file name.
"""

from imgcurate.tar.changes import ShardChanged, ShardError, difference, refuse_changed
from imgcurate.tar.fields import DamagedTar
from imgcurate.tar.headers import Member, walk
from imgcurate.tar.names import COMPRESSED, is_unsafe, printable, shown, split_name
from imgcurate.tar.samples import Sample, compressed, scan
from imgcurate.tar.writing import END, header, padding

__all__ = [
    "COMPRESSED", "END", "DamagedTar", "Member", "Sample", "ShardChanged", "ShardError", "compressed", "difference", "header", "is_unsafe", "padding", "printable", "refuse_changed", "scan",
    "shown", "split_name", "walk",
]  # fmt: skip
