"""Tables and a picture of what was measured."""

from collections.abc import Callable, Iterable
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import click

Row = dict[str, Any]


def by_contestant(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Group rows, in the order in which they ran."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["contestant"], []).append(row)
    return found


def ratios(rows: list[Row], others: list[Row], take: Callable[[Row], float]) -> float:
    """Give the median of the ratios of runs of the same round."""
    return median(take(row) / other["seconds"] for row, other in zip(rows, others, strict=True))


def print_tables(found: dict[str, Any]) -> None:
    """Print medians and ratios."""
    machine = found["machine"]
    click.echo(
        f"{machine['date']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}"
    )
    for place in ("ram", "disk"):
        if place in found:
            click.echo(
                f"\n{place}: {found['input_bytes'] / 1e9:.2f} GB in, medians of {found['rounds']} rounds"
            )
            print_place(by_contestant(found[place]), found["input_bytes"])
    if "pace" in found:
        print_pace(found["pace"])
    if "ways" in found:
        print_ways(by_contestant(found["ways"]))
    if "experts" in found:
        print_experts(by_contestant(found["experts"]))
    if "verify" in found:
        print_verify(by_contestant(found["verify"]))
    if "growth" in found:
        print_growth(found["growth"])
    if "full" in found:
        print_full(found["full"])


def print_full(row: Row) -> None:
    """Print what a whole model took, and whether it is right."""
    written, seconds = row["output_bytes"], row["seconds"]
    click.echo(f"\n{row['layers']} layers: {written / 1e9:.1f} GB, on the disk {row['disk_bytes'] / 1e9:.1f}")
    click.echo(
        f"{seconds:.0f} s, {written / seconds / 1e9:.2f} GB/s, {row['core_seconds'] / written * 1e9:.2f} core-s/GB, "
        f"anonymous memory {row['peak_anonymous_bytes'] / 2**20:.0f} MiB"
    )
    click.echo(
        f"compared by safetensors: {', '.join(row['compared'])}; different: {row['different'] or 'none'}"
    )


def print_ways(groups: dict[str, list[Row]]) -> None:
    """Print how every way moves, against the first one's moving of the same round."""
    first = next(iter(groups.values()))
    click.echo(f"\n{'':<44}{'moving s':>10}{'pace':>7}{'MD5s s':>9}{'finishing s':>13}{'anon MiB':>10}")
    for name, rows in groups.items():
        pace = median(
            one["seconds_moving"] / row["seconds_moving"] for one, row in zip(first, rows, strict=True)
        )
        moving, checksums, finishing = (
            median(row[f"seconds_{phase}"] for row in rows) for phase in ("moving", "checksums", "finishing")
        )
        memory = median(row["peak_anonymous_bytes"] for row in rows) / 2**20
        click.echo(f"{name:<44}{moving:>10.2f}{pace:>7.2f}{checksums:>9.2f}{finishing:>13.2f}{memory:>10.0f}")


def print_verify(groups: dict[str, list[Row]]) -> None:
    """Print what verifying takes, against reading in the same round."""
    click.echo(
        f"\n{'disk, nothing of it in memory':<32}{'s':>8}{'GB/s':>8}{'/ cat':>8}{'core-s/GB':>11}{'anon MiB':>10}"
    )
    for name, rows in groups.items():
        seconds, size = median(row["seconds"] for row in rows), rows[0]["bytes"] / 1e9
        cores = median(row["core_seconds"] for row in rows) / size
        memory = max(row["peak_anonymous_bytes"] for row in rows) / 2**20
        ratio = ratios(rows, groups["cat"], lambda row: row["seconds"])
        click.echo(
            f"{name:<32}{seconds:>8.2f}{size / seconds:>8.2f}{ratio:>8.2f}{cores:>11.2f}{memory:>10.0f}"
        )


def print_experts(groups: dict[str, list[Row]]) -> None:
    """Print how experts move, their digests included, against text of the same round."""
    click.echo(f"\n{'disk, everything durable':<32}{'GB/s':>8}{'/ text':>8}{'core-s/GB':>11}{'anon MiB':>10}")
    paces = {
        name: [
            row["bytes_written"] / 1e9 / (row["seconds_moving"] + row["seconds_checksums"]) for row in rows
        ]
        for name, rows in groups.items()
    }
    text = next(iter(paces.values()))
    for name, rows in groups.items():
        ratio = median(map(truediv, paces[name], text))
        cores = median(row["core_seconds"] / row["bytes_written"] * 1e9 for row in rows)
        memory = max(row["peak_anonymous_bytes"] for row in rows) / 2**20
        click.echo(f"{name:<32}{median(paces[name]):>8.2f}{ratio:>8.2f}{cores:>11.2f}{memory:>10.0f}")


def print_place(groups: dict[str, list[Row]], input_bytes: int) -> None:
    """Print one place's table."""
    click.echo(
        f"{'':<32}{'s':>8}{'GB/s':>8}{'/ cp -r':>9}{'/ two cp':>9}{'moving s':>10}{'/ two cp':>9}{'core-s/GB':>11}{'anon MiB':>10}"
    )
    for name, rows in groups.items():
        seconds = median(row["seconds"] for row in rows)
        line = f"{name:<32}{seconds:>8.2f}{input_bytes / 1e9 / seconds:>8.2f}"
        line += "".join(
            f"{ratios(rows, groups[other], lambda row: row['seconds']):>9.2f}"
            for other in ("cp -r", "two cp")
        )
        if "seconds_moving" in rows[0]:
            moving = median(row["seconds_moving"] for row in rows)
            line += (
                f"{moving:>10.2f}{ratios(rows, groups['two cp'], lambda row: row['seconds_moving']):>9.2f}"
            )
        else:
            line += " " * 19
        line += f"{median(row['core_seconds'] for row in rows) / input_bytes * 1e9:>11.2f}"
        click.echo(line + f"{median(row['peak_anonymous_bytes'] for row in rows) / 2**20:>10.0f}")


def print_pace(rows: list[Row]) -> None:
    """Print the speed of inline and Ray once all workers are up."""
    inline, on_ray = (
        [row["gigabytes_per_second"] for row in rows if row["workers"] == workers] for workers in (0, 2)
    )
    ratio = median(ray / plain for plain, ray in zip(inline, on_ray, strict=True))
    click.echo("\nGB/s while moving, the workers being up, RAM disk")
    click.echo(f"inline {median(inline):.2f}, Ray with 2 workers {median(on_ray):.2f}, ratio {ratio:.2f}")


def print_growth(rows: list[Row]) -> None:
    """Print time and memory against the size of the model."""
    click.echo("\nmemory and bytes, inline (MiB above the process right after its imports)")
    click.echo(
        f"{'':<32}{'s/GB':>8}{'two cp':>8}{'/ two cp':>9}"
        f"{'before':>9}{'moving':>9}{'read/input':>12}{'/proc':>8}{'written':>9}"
    )
    models = dict.fromkeys(row["model"] for row in rows)
    for model in models:
        mine = [row for row in rows if row["model"] == model]
        row = mine[-1]
        paces = [one["seconds"]["moving"] / one["bytes_written"] * 1e9 for one in mine]
        copies = [one["seconds_two_cp"] / one["input_bytes"] * 1e9 for one in mine if "seconds_two_cp" in one]
        copied = f"{median(copies):>8.3f}{median(map(truediv, paces, copies)):>9.2f}" if copies else " " * 17
        base = row["anonymous_after_imports"]
        peak = max(one["anonymous_peak_moving"] - one["anonymous_after_imports"] for one in mine)
        click.echo(
            f"{model:<32}{median(paces):>8.3f}{copied}{(row['anonymous_before_moving'] - base) / 2**20:>9.0f}{peak / 2**20:>9.0f}"
            f"{row['bytes_read'] / row['input_bytes']:>12.5f}{row['proc_read'] / row['input_bytes']:>8.4f}"
            f"{row['proc_written'] / row['bytes_written']:>9.5f}"
        )


def write_picture(found: dict[str, Any], path: Path) -> None:
    """Draw bars against the copy, and time against layers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    places = [place for place in ("ram", "disk") if place in found]
    panels = [*places, *(["growth"] if "growth" in found else [])]
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False)
    for panel, axis in zip(panels, axes[0], strict=True):
        if panel == "growth":
            draw_growth(found["growth"], axis)
            continue
        groups = by_contestant(found[panel])
        names = list(groups)
        axis.barh(
            names,
            [median(row["seconds"] for row in groups[name]) for name in names],
            color="#9ab",
            label="whole",
        )
        moving = [name for name in names if "seconds_moving" in groups[name][0]]
        axis.barh(
            moving,
            [median(row["seconds_moving"] for row in groups[name]) for name in moving],
            color="#357",
            height=0.4,
            label="moving",
        )
        axis.axvline(median(row["seconds"] for row in groups["cp -r"]), color="#a33", linestyle=":")
        axis.invert_yaxis()
        axis.set_xlabel("seconds")
        axis.set_title(
            {"ram": "RAM disk", "disk": "disk, durable"}[panel] + f", {found['input_bytes'] / 1e9:.1f} GB"
        )
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_growth(rows: list[Row], axis: Any) -> None:
    """Draw moving time against the number of layers."""
    layers = sorted({row["layers"] for row in rows if "layers" in row})
    taken = [[row["seconds"]["moving"] for row in rows if row.get("layers") == count] for count in layers]
    axis.plot(layers, [median(times) for times in taken], "o-", color="#357")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("layers")
    axis.set_ylabel("seconds moving")
    axis.set_title("time against layers, RAM disk")
