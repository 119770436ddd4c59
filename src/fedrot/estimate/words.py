"""Forecasts on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedrot.estimate.devices import CPU_UTILISATION, GIB, UTILISATION
from fedrot.estimate.forecast import Forecast, OnDevice
from fedrot.estimate.memory import Memory
from fedrot.report.digits import data_size

ASSUMED = (
    f"Hours are operations over the device's dense rate and a utilisation of {UTILISATION:g} (this CPU: its measured "
    f"product rate and {CPU_UTILISATION:g}). GPU rates are the makers' figures; small batches reach less."
)


def print_forecast(found: Forecast, console: Console) -> None:
    """Model, memory part by part, hours by device, bytes, and what was assumed."""
    console.print(
        f"{found.shape.parameters / 1e6:,.1f} million parameters, {found.trained / 1e6:,.3f} million trained by each "
        f"client; {found.work.total / 1e15:,.3g} PFLOP, of which evaluation {found.work.evaluation / 1e15:,.3g}; "
        f"{found.work.tokens / 1e6:,.1f} million tokens",
        soft_wrap=True,
    )
    console.print(_memory_table(found))
    table = Table(box=None, pad_edge=False, title="Where it could run", title_justify="left")
    for header in ("device", "clients at once", "GiB", "hours"):
        table.add_column(header, justify="left" if header == "device" else "right")
    for place in found.devices:
        table.add_row(*_row(place))
    console.print(table)
    sent = found.bytes
    console.print(
        f"\nbytes: {data_size(sent.first_up)} up and {data_size(sent.first_down)} down in the first round, "
        f"{data_size(sent.up)} up and {data_size(sent.down)} down in all, of all clients together",
        soft_wrap=True,
    )
    for note in (*found.notes, ASSUMED):
        console.print(f"note: {escape(note)}", soft_wrap=True)


def _memory_table(found: Forecast) -> Table:
    """Peak memory of one client and of the largest group of each device, in GiB."""
    table = Table(box=None, pad_edge=False, title="Memory at the peak of a step, GiB", title_justify="left")
    table.add_column("part")
    columns: dict[str, Memory] = {"one client": found.single}
    for place in found.devices:
        if place.group > 1:
            columns.setdefault(f"{place.group} clients", place.memory)
    for header in columns:
        table.add_column(header, justify="right")
    for part in fields(Memory):
        values = [getattr(column, part.name) for column in columns.values()]
        table.add_row(part.name, *(gib(value) for value in values))
    table.add_row("total", *(gib(column.total) for column in columns.values()))
    return table


def _row(place: OnDevice) -> tuple[str, str, str, str]:
    fits = str(place.group) if place.group else "does not fit"
    return place.device.name, fits, gib(place.memory.total), hours(place.hours)


@dataclass(frozen=True)
class Arms:
    """Runs that cost alike: where in the grid, also in words, of which variant, how many, and the forecast of one."""

    point: Mapping[str, Any]
    where: str
    variant: str
    runs: int
    one: Forecast

    @property
    def hours(self) -> list[float | None]:
        """Of all these runs, by device."""
        return [None if place.hours is None else self.runs * place.hours for place in self.one.devices]


def print_comparison(arms: Sequence[Arms], console: Console) -> None:
    """Hours of every variant at every grid point, one table a point, and of all runs."""
    headers = ("runs", "sent by one", *(f"hours, {place.device.short}" for place in arms[0].one.devices))
    totals: list[float | None] = [0.0] * len(arms[0].one.devices)
    firsts = [arm for number, arm in enumerate(arms) if arm.point not in [a.point for a in arms[:number]]]
    for first in firsts:
        table = Table(box=None, pad_edge=False, title=escape(first.where) or None, title_justify="left")
        table.add_column("variant")
        for header in headers:
            table.add_column(header, justify="right")
        for arm in (arm for arm in arms if arm.point == first.point):
            times = arm.hours
            totals = [None if a is None or b is None else a + b for a, b in zip(totals, times, strict=True)]
            sent = data_size(arm.one.bytes.up + arm.one.bytes.down)
            table.add_row(escape(arm.variant), str(arm.runs), sent, *map(hours, times))
        console.print(table)
    shown = ", ".join(
        f"{hours(total)} on {p.device.name}" for total, p in zip(totals, arms[0].one.devices, strict=True)
    )
    console.print(f"\nhours of all {sum(arm.runs for arm in arms)} runs: {shown}", soft_wrap=True)
    console.print(
        f"memory of one client at a time: {gib(max(arm.one.single.total for arm in arms))} GiB",
        soft_wrap=True,
    )
    for note in (*dict.fromkeys(note for arm in arms for note in arm.one.notes), ASSUMED):
        console.print(f"note: {escape(note)}", soft_wrap=True)


def gib(value: float) -> str:
    """Bytes as GiB."""
    return f"{value / GIB:,.2f}"


def hours(value: float | None) -> str:
    """Hours, with a digit that matters."""
    if value is None:
        return "no rate"
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"
