"""How many rows a reader puts into a partition."""

from __future__ import annotations

from imgcurate.arguments import check_whole_number

# Enough partitions to keep the workers of a machine busy with one shard, and not so many of many shards that the scheduler has more to do than
# they. A model's batches, of 32 images or fewer on a CPU and of 256 on a GPU, stay full but for a partition's last.
_PARTITIONS, _MOST = 16, 2048
_FEWEST = {"pandas": 32, "cudf": 1024}


def rows_at_once(n_rows: int, asked: int | None, backend: str) -> int:
    """Return how many rows of a shard, or of a folder of files, are a partition.

    Parameters
    ----------
    n_rows : int
        Of the shard or folder.
    asked : int or None
        ``rows_per_partition``, as the user gave it.
    backend : {"pandas", "cudf"}

    Raises
    ------
    ValueError
        Where `asked` is not a whole number of at least 1.

    Examples
    --------
    >>> [rows_at_once(n, None, "pandas") for n in (10, 800, 10_000, 1_000_000)]
    [32, 50, 625, 2048]
    >>> [rows_at_once(10_000, None, "cudf"), rows_at_once(10_000, 100, "cudf")]
    [1024, 100]
    """
    if asked is None:
        return min(max(-(-n_rows // _PARTITIONS), _FEWEST[backend]), _MOST)
    check_whole_number("rows_per_partition", asked)
    return int(asked)
