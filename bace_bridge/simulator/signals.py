"""Plausible values, the same ones for the same seed."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signal:
    """A rest value with a slow swing (`period` in seconds) and a little noise around it."""

    name: str
    unit: str
    rest: float
    swing: float
    period: float
    noise: float
    decimals: int
    low: float
    high: float
    drift_per_hour: float = 0.0


# 6000, 6001, 6002 and 6011 are known datatypes of BACE and 5205 seems to be one; 6005 is our invention.
SIGNALS: Mapping[int, Signal] = {
    6000: Signal("Heart rate", "bpm", 74, 9, 240, 2, 0, 38, 190),
    6001: Signal("Respiration rate", "/min", 15, 2.5, 180, 0.8, 0, 6, 40),
    6002: Signal("Oxygen saturation", "%", 97, 0.9, 300, 0.5, 0, 80, 100),
    6005: Signal("Body temperature", "°C", 36.8, 0.25, 3600, 0.05, 1, 34, 42),
    6011: Signal("Body weight", "kg", 72.4, 0.1, 5400, 0.15, 1, 2, 250),
    5205: Signal("Battery voltage", "V", 3.95, 0.01, 900, 0.005, 2, 3.0, 4.2, drift_per_hour=-0.03),
}
_OTHER = Signal("Value", "", 20, 4, 600, 0.5, 2, -1e6, 1e6)


def name_of(datatype: int) -> str:
    signal = SIGNALS.get(datatype)
    return signal.name if signal else f"Datatype {datatype}"


def value(datatype: int, at: float, *, seed: int, since: float = 0.0) -> float:
    """What the signal shows `at` seconds; `since`: when the session began, from where it drifts."""
    signal = SIGNALS.get(datatype, _OTHER)
    phase = _fraction(f"{seed}/{datatype}") * math.tau
    person = (_fraction(f"{seed}/{datatype}/person") - 0.5) * signal.swing
    wave = math.sin(at * math.tau / signal.period + phase)
    ripple = math.sin(at * math.tau / (signal.period / 7.3) + 2 * phase) / 3
    noise = (_fraction(f"{seed}/{datatype}/{at:.3f}") - 0.5) * 2 * signal.noise
    drift = signal.drift_per_hour * (at - since) / 3600
    shown = signal.rest + person + signal.swing * (wave + ripple) / 2 + noise + drift
    return round(min(signal.high, max(signal.low, shown)), signal.decimals)


def _fraction(text: str) -> float:
    """A number from 0 to 1 that is a function of the text in every process, unlike `hash`."""
    return zlib.crc32(text.encode()) / 0xFFFFFFFF
