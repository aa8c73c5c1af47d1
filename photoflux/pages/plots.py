"""Figures of the pages. Each returns a matplotlib figure of its own, without the pyplot state machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from photoflux.judges.stats import Array, Interval
from photoflux.pages.palette import BLUE, DOUBTFUL, GREY, INK, LINE, SOFT, TONES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, *, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with axes in muted colours, made without the pyplot state machine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(SOFT)
        each.tick_params(colors=SOFT, labelsize=9)
    return figure, axes


def forest(
    rows: Sequence[tuple[str, Interval, str, float | None]], *, title: str = "", low: float = -0.5, high: float = 1.25
) -> Figure:
    """Intervals one below the other: (label, interval, verdict, limit); what lies outside the frame is clipped."""
    figure, (axis,) = new_figure(8.2, 0.34 * len(rows) + 0.9)
    for y, (_, value, verdict, limit) in enumerate(rows):
        tone = TONES.get(verdict, BLUE)
        ends = np.clip([value.lo, value.hi], low, high)
        axis.plot(ends, [y, y], color=tone, lw=2.6, solid_capstyle="round")
        axis.plot(np.clip(value.point, low, high), y, "o", color=tone, ms=6)
        if limit is not None:
            axis.plot([limit, limit], [y - 0.36, y + 0.36], color=INK, lw=1.4)
    axis.set_yticks(range(len(rows)), [row[0] for row in rows], color=INK)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(low, high)
    axis.axvline(0, color=LINE, lw=1, zorder=0)
    axis.axvline(1, color=LINE, lw=1, zorder=0)
    axis.set_title(title, loc="left", fontsize=10, color=SOFT)
    return figure


def trade_off(points: Sequence[tuple[str, Interval, Interval]]) -> Figure:
    """Identity gain against prompt following, one cross per model: up and right is better."""
    figure, (axis,) = new_figure(4.8, 4.0)
    for i, (label, following, gain) in enumerate(points):
        tone = (BLUE, SOFT, DOUBTFUL)[i % 3]
        axis.errorbar(
            following.point,
            gain.point,
            fmt="o",
            color=tone,
            ms=7,
            lw=1.6,
            xerr=[[max(following.point - following.lo, 0)], [max(following.hi - following.point, 0)]],
            yerr=[[max(gain.point - gain.lo, 0)], [max(gain.hi - gain.point, 0)]],
        )
        axis.annotate(label, (following.point, gain.point), xytext=(7, 7), textcoords="offset points", color=tone)
    axis.set_xlabel("prompt following", color=SOFT)
    axis.set_ylabel("identity gain", color=SOFT)
    axis.margins(0.25)
    axis.axhline(0, color=LINE, lw=1, zorder=0)
    axis.axhline(1, color=LINE, lw=1, zorder=0)
    return figure


def paired_bars(
    rows: Mapping[str, tuple[Interval, Interval]], *, labels: tuple[str, str] = ("base", "tuned")
) -> Figure:
    """Two bars with whiskers per name."""
    figure, (axis,) = new_figure(max(4.0, 0.9 * len(rows) + 1.5), 2.8)
    for offset, side, tone in ((-0.19, 0, GREY), (0.19, 1, BLUE)):
        values = [pair[side] for pair in rows.values()]
        points = np.array([v.point for v in values])
        reach = np.abs(np.array([[v.point - v.lo for v in values], [v.hi - v.point for v in values]]))
        x = np.arange(len(rows)) + offset
        axis.bar(x, points, 0.36, color=tone, label=labels[side])
        axis.errorbar(x, points, yerr=reach, fmt="none", color=INK, lw=1)
    axis.set_xticks(range(len(rows)), list(rows), color=INK)
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, 1.14), ncols=2)
    return figure


def heat_map(table: Array, *, rows: Sequence[str], columns: Sequence[str], title: str, signed: bool = False) -> Figure:
    """A table as colours with its numbers in the cells; `signed` centres the colours on zero."""
    figure, (axis,) = new_figure(0.78 * len(columns) + 2.2, 0.36 * len(rows) + 1.3)
    reach = max(float(np.abs(table).max()), 1e-9)
    axis.imshow(table, cmap="RdBu_r" if signed else "Blues", vmin=-reach if signed else 0, vmax=reach, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, color=INK)
    axis.set_yticks(range(len(rows)), rows, color=INK)
    axis.set_title(title, loc="left", fontsize=10, color=SOFT)
    for (i, j), value in np.ndenumerate(table):
        text = f"{value:+.2f}" if signed else f"{value:g}"
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 * reach else INK)
    return figure


def stacked_shares(rows: Mapping[str, Sequence[float]], *, classes: Sequence[str], colours: Sequence[str]) -> Figure:
    """One horizontal bar of shares per row (base, tuned, …)."""
    figure, (axis,) = new_figure(7.2, 0.42 * len(rows) + 0.9)
    for y, values in enumerate(rows.values()):
        left = 0.0
        for k, value in enumerate(values):
            axis.barh(y, value, left=left, color=colours[k % len(colours)], edgecolor="white", height=0.7)
            if value > 0.06:
                axis.text(left + value / 2, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white")
            left += value
    axis.set_yticks(range(len(rows)), list(rows), color=INK)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    handles = [axis.barh(0, 0, color=colours[k % len(colours)]) for k in range(len(classes))]
    axis.legend(
        handles,
        classes,
        frameon=False,
        fontsize=8,
        ncols=min(len(classes), 5),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
    )
    return figure
