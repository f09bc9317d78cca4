"""Curate image and image-text datasets as Dask dataframes."""

from imgcurate.cluster import prefer_task_shuffle

prefer_task_shuffle()
