"""What dedup.py prints: its sections as tables, and what was wanted beside what came out."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]


def show(report: Report) -> None:
    """Print the sections of a report."""
    first = next(iter(report.values()))
    run = first["run"] if "run" in first else next(iter(first.values()))["run"]  # of growth each size has its own
    bf16 = ", ".join(run["bf16_instructions"]) or "no bf16 instructions"
    print(f"{run['machine']} ({run['cores']} used, {bf16}), {run['date']}; eps {run['eps']}; median (min to max)")
    for section, printer in (("join", _join), ("whole", _whole), ("exact", _whole), ("growth", _growth)):
        if section in report:
            printer(section, report[section])
    print()
    for line in wanted(report):
        print(line)


def wanted(report: Report) -> list[str]:
    """Say in plain words what was wanted, as far as the report tells."""
    lines = []
    if "join" in report:
        for data, found in report["join"]["data"].items():
            fast = found["computes_in"]["imgcurate"]
            if fast != "float32":
                lines += _ratio(f"join in {fast}, {data}", found["ratios"]["imgcurate"], (6, 6))
    for size, found in report.get("whole", {}).get("sizes", {}).items():
        ours = found["contestants"]["imgcurate"]
        if size == "20000 x 768":
            lines.append(f"whole, {size}: {ours['seconds']['median']:.2f} s (wanted at most 0.8)")
        if size == "300000 x 512":
            lines += _ratio(f"whole, {size}", found["ratios"], (4,))
        lines.append(f"recall, {size}: {_share(ours['recall'])} (wanted 99.9 %)")
    for size, found in report.get("exact", {}).get("sizes", {}).items():
        recall = next(iter(found["contestants"].values()))["recall"]
        lines.append(f"recall of exact=True, {size}: {_share(recall)} (wanted 100 %)")
    return lines + _wanted_of_growth(report.get("growth", {}))


def _wanted_of_growth(growth: Report) -> list[str]:
    lines = []
    if "1000000 x 768" in growth:
        lines.append(f"1,000,000 x 768: {growth['1000000 x 768']['seconds']['median']:.0f} s (wanted at most 90)")
    for size, base in (("4000000 x 768", "1000000 x 768"), ("10000000 x 256", "1000000 x 256")):
        if size in growth and base in growth:
            times = growth[size]["seconds_per_row"] / growth[base]["seconds_per_row"]
            lines.append(f"{size}: {times:.2f} times the seconds per row of {base} (wanted at most 1.5)")
    for size, found in growth.items():
        lines.append(
            f"growth, {size}: {found['workers_peak_mib'][0] / 1024:.2f} GiB in the larger worker (wanted at most 3), "
            f"{found['disk_of_vectors']:.2f} of the vectors on disk (wanted at most 2.5), {found['tasks']:,} tasks (wanted at most 100,000)"
        )
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
    for size, found in report["sizes"].items():
        print(
            f"\n{section}, {size}; {found['true_pairs']:,} true pairs, of them "
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
        for name, seconds in found["left_out_as_it_would_take_seconds"].items():
            print(f"{name:<30}left out: would take {seconds:,} s")
    print(
        "recall: of the pairs that a brute force finds; of KMeans the pairs inside a cluster. * of the images that the rule, with all pairs, removes\n"
        "peak of imgcurate: the largest worker"
    )


def _growth(section: str, report: Report) -> None:
    print("\ngrowth; memory of the larger worker, and of the process of client and scheduler")
    _head(
        "seconds",
        "us a row",
        "to make",
        "CPU s",
        "tasks",
        "pairs",
        "recall",
        "worker MiB",
        "client MiB",
        "disk",
        width=12,
    )
    for size, found in report.items():
        _row(
            size,
            _spread(found["seconds"], 2),
            f"{found['seconds_per_row'] * 1e6:.1f}",
            f"{found['seconds_to_make_vectors']:.1f}",
            f"{found['cpu_seconds']:.0f}",
            f"{found['tasks']:,}",
            f"{found['n_pairs']:,}",
            f"{found['recall']['recall']:.4f}",
            f"{found['planted']['share']:.5f}",
            f"{found['workers_peak_mib'][0]:,}",
            f"{found['client_and_scheduler_peak_mib']:,}",
            f"{found['disk_of_vectors']:.2f} x",
            width=12,
        )


def _head(*columns: str, width: int = 22) -> None:
    _row("", *columns, width=width)


def _row(name: str, *cells: str, width: int = 22) -> None:
    print(f"{name:<30}" + "".join(f"{cell:>{width if number else 26}}" for number, cell in enumerate(cells)))


def _spread(values: Report | None, digits: int) -> str:
    if values is None:
        return ""
    least, median, most = (f"{values[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return f"{median} ({least} to {most})" if values["rounds"] > 1 else median


def _share(value: float) -> str:
    # Cut, not rounded: what is printed as 100 % is all.
    return f"{int(value * 1e5) / 1e3:.3f} %" if value < 1 else "100 %"
