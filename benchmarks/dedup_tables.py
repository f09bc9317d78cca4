"""What dedup.py prints: its sections as tables, and what was wanted beside what came out."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]


def show(report: Report) -> None:
    """Print the sections of a report."""
    run = next(iter(report.values()))["run"]
    bf16 = ", ".join(run["bf16_instructions"]) or "no bf16 instructions"
    print(f"{run['machine']} ({run['cores']} used, {bf16}), {run['date']}; eps {run['eps']}; median (min to max)")
    for section, printer in (("join", _join), ("whole", _whole), ("exact", _whole), ("growth", _growth)):
        if section in report:
            printer(section, report[section])
    print()
    for line in wanted(report):
        print(line)


def wanted(report: Report) -> list[str]:
    """Say in plain words what was wanted, as far as the report tells, at the largest size that was run."""
    lines = []
    if "join" in report:
        for data, found in report["join"]["data"].items():
            fast = found["computes_in"]["imgcurate"]
            if fast != "float32":
                lines += _ratio(f"join in {fast}, {data}", found["ratios"]["imgcurate"], (8, 6))
            plain = dict(list(found["ratios"]["imgcurate, float32"].items())[:1])
            lines += _ratio(f"join in float32, {data}", plain, (1.8,))
    if "whole" in report:
        n, found = list(report["whole"]["sizes"].items())[-1]
        lines += _ratio(f"whole, {int(n):,} rows", found["ratios"], (4, 3, 3))
        lines.append(f"recall, {int(n):,} rows: {_share(found['contestants']['imgcurate']['recall'])} (wanted 99.9 %)")
    if "exact" in report:
        for n, found in report["exact"]["sizes"].items():
            recall = next(iter(found["contestants"].values()))["recall"]
            lines.append(f"recall of exact=True, {int(n):,} rows: {_share(recall)} (wanted 100 %)")
    if "growth" in report:
        n, found = list(report["growth"]["sizes"].items())[-1]
        lines.append(
            f"{int(n):,} rows: {found['seconds']['median'] / 60:.1f} minutes (wanted less than 10 for 1,000,000)"
        )
        lines.append(f"{int(n):,} rows: {found['peak_mib'] / 1024:.1f} GiB in the largest worker (wanted at most 6)")
    return lines


def _ratio(what: str, found: Report, wanted: tuple[float, ...]) -> list[str]:
    return [
        f"{what} vs {peer}: {values['median']:.1f} x, {values['min']:.1f} to {values['max']:.1f} (wanted {least:g})"
        for (peer, values), least in zip(found.items(), wanted, strict=False)
    ]


def _join(section: str, report: Report) -> None:
    kernels = {name: found["seconds"] for name, found in report["faiss_kernels"].items() if found}
    print(f"\nfaiss, seconds of 4,000 rows by OPENBLAS_CORETYPE: {kernels}")
    for data, found in report["data"].items():
        print(
            f"\njoin, {report['rows']:,} x {report['dimension']}, {data}; {found['removed']:,} removed, by all the same"
        )
        _head("seconds", *(f"vs {ours.partition(', ')[2] or ours}" for ours in found["ratios"]), "peak MiB")
        for name, figures in found["contestants"].items():
            times = [_spread(found["ratios"][ours].get(name), 1) for ours in found["ratios"]]
            _row(name, _spread(figures["seconds"], 2), *times, f"{figures['peak_mib']:,.0f}")


def _whole(section: str, report: Report) -> None:
    for n, found in report["sizes"].items():
        print(
            f"\n{section}, {int(n):,} x {report['dimension']}; {found['true_pairs']:,} true pairs, of them "
            f"{found['of_them_not_planted']:,} not planted"
        )
        _head("seconds", "ratio", "recall", "wrong pairs", "removed", "peak MiB")
        for name, figures in found["contestants"].items():
            _row(
                name,
                _spread(figures["seconds"], 2),
                _spread(found["ratios"].get(name), 1),
                _share(figures["recall"]) + ("" if figures["recall_of"] == "pairs" else " *"),
                f"{figures['wrong_pairs']:,}" if "wrong_pairs" in figures else "",
                f"{figures['n_removed']:,}",
                f"{figures['peak_mib']:,.0f}",
            )
        for name in found["left_out"]:
            print(f"{name:<30}left out: would take too long")
    print(
        "recall: of the pairs that a brute force finds; of KMeans the pairs inside a cluster. * of the images that the rule, with all pairs, removes\n"
        "peak of imgcurate: the largest worker"
    )


def _growth(section: str, report: Report) -> None:
    print(f"\ngrowth, rows of {report['dimension']}, {report['memory_limit']} a worker")
    _head("seconds", "rows a second", "removed", "clusters", "worker MiB", "client MiB")
    for n, found in report["sizes"].items():
        _row(
            f"{int(n):,}",
            _spread(found["seconds"], 2),
            f"{int(n) / found['seconds']['median']:,.0f}",
            f"{found['n_removed']:,}",
            f"{found['n_clusters']:,}",
            f"{found['peak_mib']:,.0f}",
            f"{found['client_peak_mib']:,.0f}",
        )


def _head(*columns: str) -> None:
    _row("", *columns)


def _row(name: str, *cells: str) -> None:
    print(f"{name:<30}" + "".join(f"{cell:>26}" if number == 0 else f"{cell:>22}" for number, cell in enumerate(cells)))


def _spread(values: Report | None, digits: int) -> str:
    if values is None:
        return ""
    least, median, most = (f"{values[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return f"{median} ({least} to {most})" if values["rounds"] > 1 else median


def _share(value: float) -> str:
    # Cut, not rounded: what is printed as 100 % is all.
    return f"{int(value * 1e5) / 1e3:.3f} %" if value < 1 else "100 %"
