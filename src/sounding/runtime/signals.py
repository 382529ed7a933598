"""What a device says of itself: how busy its processors are, its battery, its temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LOW_BATTERY = 0.2  # share of a charge
HOT = 85.0  # degrees Celsius, where no critical temperature is known
MARGIN = 10.0  # degrees below the critical temperature


@dataclass(frozen=True)
class Signals:
    """The state of a device at one moment; None where the system does not say.

    Attributes:
        busy: share of all processors in use since the last reading, by all programs.
        battery: its charge, from 0 to 1.
        plugged: whether it is being charged.
        celsius: the hottest sensor.
        hot: whether that is close to where the device would slow itself down.
    """

    busy: float | None = None
    battery: float | None = None
    plugged: bool | None = None
    celsius: float | None = None
    hot: bool = False

    @property
    def spare(self) -> bool:
        """Whether to go easy on the device: a low battery, or heat."""
        return self.hot or (
            self.battery is not None and self.battery < LOW_BATTERY and not self.plugged
        )

    def ceiling(self, layers: int) -> int:
        """Return the most layers that an input gets: half of them where the device is spared."""
        return max(1, layers // 2) if self.spare else layers


def read_signals() -> Signals:
    """Return what psutil knows of this system; all None without psutil."""
    try:
        import psutil
    except ModuleNotFoundError:
        return Signals()
    busy = psutil.cpu_percent(interval=None) / 100  # since the last call
    battery = _ask(psutil, "sensors_battery")
    sensors = _ask(psutil, "sensors_temperatures") or {}
    readings = [one for group in sensors.values() for one in group if one.current is not None]
    hottest = max(readings, key=lambda one: one.current, default=None)
    hot = any(one.current >= ((one.critical or HOT + MARGIN) - MARGIN) for one in readings)
    return Signals(
        busy=busy,
        battery=None if battery is None else battery.percent / 100,
        plugged=None if battery is None else battery.power_plugged,
        celsius=None if hottest is None else float(hottest.current),
        hot=hot,
    )


def _ask(psutil: Any, name: str) -> Any:
    """Return a reading that psutil has on some systems only."""
    ask = getattr(psutil, name, None)
    try:
        return None if ask is None else ask()
    except (OSError, RuntimeError):
        return None
