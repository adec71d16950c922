"""What bench.py measured, and what it says: medians, ratios, a line through sizes, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Line", "Measured", "Ratio", "Run", "fit", "fit_table", "fits", "ratios", "tables"]

# The wall time of a fold over that of starting Python and copying the weights, at most.
_COPYING = {
    "open_nsfw": 1.8,
    "mobilenet_ssd": 1.8,
    "resnet50": 1.8,
    "vgg16_bn": 1.3,
    "wide_2500mb": 1.3,
}
# How many times faster than the classic script, at least.
_CLASSIC = {"open_nsfw": 2.5, "vgg16_bn": 8.0}
_PEAK = 64.0  # MiB, at most


@dataclass(frozen=True)
class Run:
    """One process: seconds of wall and of CPU time, and MiB of resident memory at most."""

    wall: float
    cpu: float
    peak: float


@dataclass
class Measured:
    """All runs on one net, by command; ``cannot`` tells of the commands that failed, and why.

    ``bytes`` are those of the weights.
    """

    name: str
    bytes: int
    runs: dict[str, list[Run]] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, Run]:
        return {
            name: Run(
                median(run.wall for run in runs),
                median(run.cpu for run in runs),
                median(run.peak for run in runs),
            )
            for name, runs in self.runs.items()
        }


# ---- Ratios ----


@dataclass(frozen=True)
class Ratio:
    """A number with what it is to be, if anything: at most ``target``, or at least."""

    value: float
    target: float | None = None
    at_least: bool = False

    @property
    def texts(self) -> tuple[str, str, str]:
        """The value, its target, and whether it was met."""
        if self.target is None:
            return f"{self.value:.2f}", "", ""
        met = self.value >= self.target if self.at_least else self.value <= self.target
        sign = ">=" if self.at_least else "<="
        return f"{self.value:.2f}", f"{sign} {self.target:g}", "met" if met else "missed"


def ratios(net: Measured) -> dict[str, Ratio]:
    """What the medians of a net come to."""
    run = net.medians
    fold, start, cp = run["fold"], run["start"], run["cp"]
    found = {
        "wall_over_start_and_cp": Ratio(fold.wall / (start.wall + cp.wall), _COPYING.get(net.name)),
        "cpu_over_start_and_cp": Ratio(fold.cpu / (start.cpu + cp.cpu)),
    }
    for name in ("classic", "straightforward"):
        if name in run:
            target = _CLASSIC.get(net.name) if name == "classic" else None
            found[f"faster_than_{name}"] = Ratio(run[name].wall / fold.wall, target, True)
            found[f"less_cpu_than_{name}"] = Ratio(run[name].cpu / fold.cpu)
    found["peak_mib"] = Ratio(fold.peak, _PEAK)
    return found


_TITLES = {
    "wall_over_start_and_cp": "wall / (start + cp)",
    "cpu_over_start_and_cp": "CPU / (start + cp)",
    "faster_than_classic": "times faster than classic",
    "less_cpu_than_classic": "times less CPU than classic",
    "faster_than_straightforward": "times faster than straightforward",
    "less_cpu_than_straightforward": "times less CPU than straightforward",
    "peak_mib": "peak MiB",
}


# ---- The line through nets of many sizes ----


@dataclass(frozen=True)
class Line:
    """Seconds = ``constant`` + ``slope`` * GB; ``residual`` is the largest, of what was measured.

    ``residual`` is a part: 0.1 means that one net took a tenth more or less than the line says.
    """

    constant: float
    slope: float
    residual: float


def fit(gigabytes: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line whose residuals, each as a part of its ``seconds``, have the least squares.

    Plain residuals would let the noise of the largest net decide the constant.
    """
    weights = [1 / y**2 for y in seconds]
    total = sum(weights)
    x_mean = sum(w * x for w, x in zip(weights, gigabytes)) / total
    y_mean = sum(w * y for w, y in zip(weights, seconds)) / total
    above = sum(w * (x - x_mean) * (y - y_mean) for w, x, y in zip(weights, gigabytes, seconds))
    slope = above / sum(w * (x - x_mean) ** 2 for w, x in zip(weights, gigabytes))
    constant = y_mean - slope * x_mean
    residual = max(abs(constant + slope * x - y) / y for x, y in zip(gigabytes, seconds))
    return Line(constant, slope, residual)


def fits(nets: Sequence[Measured]) -> dict[str, dict[str, Line]]:
    """The lines of wall and CPU time, each by command."""
    sizes = [net.bytes / 1e9 for net in nets]
    medians = [net.medians for net in nets]
    return {
        key: {
            command: fit(sizes, [getattr(run[command], key) for run in medians])
            for command in ("fold", "cp")
        }
        for key in ("wall", "cpu")
    }


# ---- Tables ----


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines: the first two columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        )
        yield "  ".join(cells).rstrip()


def _run_rows(nets: Sequence[Measured]) -> Iterator[tuple[str, ...]]:
    for net in nets:
        label = f"{net.name}, {net.bytes / 1e6:.0f} MB"
        for command, run in net.medians.items():
            yield label, command, f"{run.wall:.3f}", f"{run.cpu:.3f}", f"{run.peak:.1f}"
            label = ""
        for command in net.cannot:
            yield "", command, "cannot", "", ""


def tables(nets: Sequence[Measured]) -> str:
    """The medians and the ratios of nets, for people."""
    head = ("net", "command", "wall s", "CPU s", "peak MiB")
    lines = list(_aligned([head, *_run_rows(nets)]))
    for net in nets:
        lines += [f"{net.name}: {name} cannot: {why}" for name, why in net.cannot.items()]
    found = {net.name: ratios(net) for net in nets}
    rows = [("net", "ratio of caffe-fold", "measured", "target", "")]
    for name, of_net in found.items():
        for index, (key, ratio) in enumerate(of_net.items()):
            rows.append(("" if index else name, _TITLES[key], *ratio.texts))
    return "\n".join([*lines, "", *_aligned(rows)])


def fit_table(lines: Mapping[str, Mapping[str, Line]], nets: Sequence[Measured]) -> str:
    """The lines through sizes, for people."""
    head = ("seconds", "command", "constant s", "s per GB", "slope / cp's", "largest residual")
    rows = [head]
    for key, title in (("wall", "wall"), ("cpu", "CPU")):
        for command, line in lines[key].items():
            ratio = line.slope / lines[key]["cp"].slope
            numbers = (f"{line.constant:.3f}", f"{line.slope:.3f}", f"{ratio:.2f}")
            rows.append((title, command, *numbers, f"{line.residual:.0%}"))
    sizes = f"{nets[0].bytes / 1e6:.0f} MB to {nets[-1].bytes / 1e6:.0f} MB"
    return "\n".join([f"a line through {len(nets)} nets of {sizes}:", *_aligned(rows)])
