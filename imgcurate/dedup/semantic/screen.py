"""The screen before the similarity join: short low-precision vectors whose dot products are upper bounds of cosines.

A pair of unit vectors is looked at in full only where its bound reaches the threshold. The bound is proven, so no pair is lost.

Shortening. Let ``Q`` have orthonormal columns, ``h = Q^T x`` and ``t = x - Q h`` what is left of ``x``. Then
``x . y = h_x . h_y + t_x . t_y <= h_x . h_y + |t_x| |t_y|`` by Cauchy and Schwarz, which is the dot product of
``s = (h, |t|)``, again a vector of unit length. The principal directions of a sample as ``Q`` leave ``|t|`` small; any ``Q`` is correct.

Heads are computed in float32, in runs of 128 terms: a sum of ``d`` products of two unit vectors is then off by at most ``(130 + d / 128) 2^-24``, the
rounding of ``Q`` included, and a head of ``m`` such sums by ``eta``, that times ``sqrt(m)``. With ``|t|`` taken as ``sqrt(1 - |h|^2 + 2 eta)``,
which is never too short, ``s_x . s_y >= x . y - 2 eta - eta^2``.

Rounding. ``s`` has K numbers and length at most ``1 + eta + 2^-22``. With unit roundoff ``u`` (2^-9 in bfloat16, 2^-11 in float16,
2^-24 in float32):

- inputs: ``|fl(s) - s| <= u |s| + sqrt(K) m``, with ``m`` half the smallest subnormal (2^-25 in float16, nothing elsewhere), so that
  the product of two moves by at most ``2 u + u^2 + 2 sqrt(K) m``;
- sums in float32: at most ``K 2^-23``, twice the bound of rounding to nearest, because matrix units may truncate;
- output: at most ``u`` times a value of about 1.

So ``computed >= x . y - margin`` with ``margin = 3 u + u^2 + 2 sqrt(K) m + K 2^-23 + 3 eta + 10^-5``, where the last terms take what the lengths
exceed 1 by. In bfloat16 that is 0.0059 + K 2^-23 + 3 eta, and eta is about 10^-4.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from imgcurate import vectors
from imgcurate.dedup.semantic import threads

_ROUNDOFF = {"bfloat16": 2.0**-9, "float16": 2.0**-11, "float32": 2.0**-24}
_SUBNORMAL = {"bfloat16": 0.0, "float16": 2.0**-25, "float32": 0.0}
#: A basis is fitted to so many rows, and the number of directions is chosen by what the pairs of as many others say.
_SAMPLE_ROWS = 1024
_MOST_DIRECTIONS = 192
_STEP = 32
#: Cost of one multiplication of the heads (float32) and of one pair that is looked at in full, per dimension, in multiplications of the
#: screen: what one more costs a product. Matrix units that multiply bfloat16 make the screen's cheap.
_COSTS = {"bfloat16": (16, 400), "float16": (6, 500), "float32": (2, 50)}
#: What `plan` itself costs. It runs on the host, and a GPU multiplies a thousand times in the time that a CPU does once.
_PLAN_COST = {"cpu": 2e10, "cuda": 1e13}
_HEAD_BLOCK = 4096
_RUN = 128

_exact = threading.Lock()
_exact_users = 0
_settings_before: tuple[Any, ...] = ()


class Screen(NamedTuple):
    """How rows are screened.

    Attributes
    ----------
    dtype : {"bfloat16", "float16", "float32"}
    basis : numpy.ndarray of shape (d, m), or None
        Orthonormal columns; None screens whole vectors.
    """

    dtype: str
    basis: np.ndarray | None = None

    def width(self, dimension: int) -> int:
        """Return the length K of a screened vector."""
        return dimension if self.basis is None else self.basis.shape[1] + 1

    def margin(self, dimension: int) -> float:
        """Return by how much a computed product may fall below the cosine; see the module's text."""
        width, u = self.width(dimension), _ROUNDOFF[self.dtype]
        rounding = 3 * u + u * u + 2 * width**0.5 * _SUBNORMAL[self.dtype] + width * 2.0**-23
        return rounding + 3 * self.head_error(dimension) + 1e-5

    def head_error(self, dimension: int) -> float:
        """Return how far a computed head may lie from the exact one, eta."""
        if self.basis is None:
            return 0.0
        return self.basis.shape[1] ** 0.5 * (_RUN + 2 + -(-dimension // _RUN)) * 2.0**-24


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Forbid what torch may have been told to do less exactly, on the CPU too: float32 products in TF32 or bfloat16, and sums in float16.

    Users and their models set this for a whole process (``torch.set_float32_matmul_precision``), and the bounds above are none then. The
    setting comes back when the last thread that needs it otherwise is done.
    """
    global _exact_users, _settings_before
    with _exact:
        if not _exact_users:
            _settings_before = _set_products()
        _exact_users += 1
    try:
        yield
    finally:
        with _exact:
            _exact_users -= 1
            if not _exact_users:
                _set_products(*_settings_before)


def _set_products(
    legacy: str | None = "highest", gpu: str | None = None, cpu: str | None = None, sums: bool = False
) -> tuple[Any, ...]:
    """Set how torch multiplies, by default exactly, and return how it did before."""
    import torch

    on_gpu, on_cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    try:
        known: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the newer of torch's two interfaces, which the older one cannot tell
        known = None
    before = known, on_gpu.fp32_precision, on_cpu.fp32_precision, on_gpu.allow_fp16_reduced_precision_reduction
    if legacy is not None:
        torch.set_float32_matmul_precision(legacy)
    if gpu is not None:
        on_gpu.fp32_precision, on_cpu.fp32_precision = gpu, cpu
    on_gpu.allow_fp16_reduced_precision_reduction = sums
    return before


def choose_dtype(device: str, low_precision: bool | None = None) -> str:
    """Return the number format in which `device` multiplies fastest.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    low_precision : bool, optional
        False: float32. Default: what a measurement on this machine says.
    """
    if low_precision is False:
        return "float32"
    name = "float16" if device == "cuda" else "bfloat16"
    return name if low_precision or _is_fast(device, name) else "float32"


def made_for_bfloat16() -> bool:
    """Tell whether this machine's processor multiplies in bfloat16: what must not depend on how busy it is asks this, and not `choose_dtype`."""
    import torch

    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def plan(sample: Any, n: int, least: float, dtype: str, other: int | None = None) -> Screen:
    """Choose how to screen `n` rows by what a sample of them says.

    Parameters
    ----------
    sample : array of shape (s, d), float32
        Unit vectors; of more than 2048 rows every so-many-th is looked at.
    n : int
        Rows that will be compared with one another.
    least : float
        The lowest cosine that is wanted.
    dtype : {"bfloat16", "float16", "float32"}
    other : int, optional
        Rows that the `n` will be compared with in place of one another.

    Returns
    -------
    Screen
        Without a basis where screening whole vectors is the cheapest.
    """
    whole = Screen(dtype)
    dimension = sample.shape[1]
    pairs = n * (n - 1) / 2 if other is None else n * other
    total = n + (other or 0)
    most = min(_MOST_DIRECTIONS, dimension // 2, len(sample) // 4)
    # Asked first, because a GPU's rows come to the host for what follows.
    if most < _STEP or pairs * dimension < 4 * _PLAN_COST[vectors.device(sample)]:
        return whole
    rows = vectors.to_numpy(sample[:: -(-len(sample) // (2 * _SAMPLE_ROWS))])
    return threads.alone(_cheapest, rows, pairs, total, least, dtype, most)


@exact_products()
def _cheapest(rows: np.ndarray, pairs: float, total: int, least: float, dtype: str, most: int) -> Screen:
    """Return the screen that costs least by what the pairs of a sample say."""
    import torch

    dimension = rows.shape[1]
    head_cost, pair_cost = _COSTS[dtype]
    # The rows that a basis was fitted to have too little left over, so others say what it is worth.
    fitted, judged = (as_tensor(np.ascontiguousarray(half)) for half in (rows[::2], rows[1::2]))
    basis = _principal_directions(fitted, most - 1)
    heads = judged @ basis.float()
    cheapest, best = pairs * dimension, Screen(dtype)
    dots = torch.zeros((len(judged), len(judged)))
    start = 0
    # With what is left over a screened vector has a multiple of so many numbers, which is how matrix units take them.
    for width in range(_STEP, most + 1, _STEP):
        part = heads[:, start : width - 1]
        dots.addmm_(part, part.T)
        start = width - 1
        rest = (1 - heads[:, :start].square().sum(dim=1)).clamp(min=0).sqrt()
        screen = Screen(dtype, basis[:, :start].numpy())
        bounds = torch.addr(dots, rest, rest)
        passing = np.count_nonzero(bounds.numpy() >= least - screen.margin(dimension))
        # The diagonal stands for what a sample of this size cannot tell from nothing.
        share = (passing - len(judged) + 1) / dots.numel()
        cost = total * dimension * start * head_cost + pairs * (width + share * pair_cost * dimension)
        if cost < cheapest:
            cheapest, best = cost, screen
    return best


@exact_products()
def apply(rows: Any, screen: Screen, n_threads: int | None = None) -> Any:
    """Return the short, low-precision vectors of `rows`.

    Parameters
    ----------
    rows : numpy.ndarray or cupy.ndarray of shape (n, d), float32
        Unit vectors.
    screen : Screen
    n_threads : int, optional
        On a CPU. Default: as many as torch has.

    Returns
    -------
    torch.Tensor of shape (n, K), `screen.dtype`
        On the device of `rows`.
    """
    import torch

    kind = getattr(torch, screen.dtype)
    given = as_tensor(rows)
    if screen.basis is None:
        return given.to(kind)
    basis = torch.from_numpy(screen.basis).float().to(given.device)
    slack = 2 * screen.head_error(given.shape[1]) + 2.0**-22
    short = torch.empty((len(given), basis.shape[1] + 1), dtype=kind, device=given.device)

    def shorten(start: int) -> None:
        block = given[start : start + _HEAD_BLOCK]
        heads = block[:, :_RUN] @ basis[:_RUN]
        for run in range(_RUN, given.shape[1], _RUN):
            heads.addmm_(block[:, run : run + _RUN], basis[run : run + _RUN])
        short[start : start + _HEAD_BLOCK, :-1] = heads
        rest = 1 + slack - heads.double().square().sum(dim=1)
        short[start : start + _HEAD_BLOCK, -1] = rest.clamp(min=0).sqrt()

    threads.deal(shorten, range(0, len(given), _HEAD_BLOCK), n_threads if given.device.type == "cpu" else 1)
    return short


def to_bits(short: Any) -> Any:
    """Return screened vectors as an array of integers of the same bits: NumPy knows no bfloat16, and tasks exchange arrays."""
    import torch

    bits = short.view(torch.int32 if short.dtype == torch.float32 else torch.int16)
    if short.device.type == "cpu":
        return bits.numpy()
    import cupy

    return cupy.from_dlpack(bits)


def from_bits(bits: Any, screen: Screen) -> Any:
    """Return what `to_bits` was given."""
    import torch

    return as_tensor(bits).view(getattr(torch, screen.dtype))


def ordered(bits: Any) -> Any:
    """Turn the bits of floats, in place, into integers in the same order, or such integers back."""
    bits ^= (bits >> (8 * bits.itemsize - 1)) & vectors.namespace(bits).iinfo(bits.dtype).max
    return bits


def as_tensor(array: Any) -> Any:
    """Return a NumPy or CuPy array as a torch tensor on its device, without a copy; it is only read."""
    import torch

    return torch.from_dlpack(array)


@exact_products()
def products(a: Any, b: Any) -> Any:
    """Return the float32 dot products of the rows of `a` with those of `b`, as an array where they are."""
    return vectors.namespace(a).from_dlpack(as_tensor(a) @ as_tensor(b).T)


@functools.cache
@exact_products()
def _is_fast(device: str, dtype: str) -> bool:
    """Tell whether products in `dtype` are exact enough and twice as fast as in float32, by trying.

    Equal numbers are the hardest to add up: a sum kept in low precision stops growing, which the first check sees.
    """
    import torch

    width = 1024
    equal = torch.full((256, width), width**-0.5, dtype=getattr(torch, dtype), device=device)
    if (equal @ equal.T).float().sub(1).abs().max().item() > Screen(dtype).margin(width):
        return False
    seconds = {}
    for name in (dtype, "float32"):
        a = torch.ones((1024, 512), dtype=getattr(torch, name), device=device)
        times = []
        for _ in range(4):
            _wait(device)
            start = time.perf_counter()
            a @ a.T
            _wait(device)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    return seconds["float32"] > 1.5 * seconds[dtype]


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _principal_directions(rows: Any, most: int) -> Any:
    """Return the leading directions of `rows`, about the origin, most important first, by randomised subspace iteration.

    Halko, Martinsson and Tropp, 2011, algorithm 4.4 with one round: good directions at a fraction of an eigendecomposition's time.
    """
    import torch

    start = torch.from_numpy(np.random.default_rng(0).standard_normal((rows.shape[1], most)).astype(np.float32))
    for _ in range(2):
        start = torch.linalg.qr(rows.T @ (rows @ start))[0]
    projected = (rows @ start).double()
    _, order = torch.linalg.eigh(projected.T @ projected)
    return torch.linalg.qr(start.double() @ order.flip(1))[0]
