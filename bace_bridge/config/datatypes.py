"""What datatypes mean to people and to Home Assistant: the keys of an entry of `datatypes`, and those built in.

What is accepted here no Home Assistant from 2025.1 to 2026.11 rejects or warns of: a device class, its units and its
state classes are those that all of these versions have, from their `components/sensor/const.py`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from bace_bridge.config.sections import Section
from bace_bridge.config.values import Text, WholeNumber, closest, mistake
from bace_bridge.errors import Mistake
from bace_bridge.formats import UNSENDABLE

_UNITS_AS_TEXT = {
    "apparent_power": "VA",
    "aqi": "",
    "area": "ac|cm²|ft²|ha|in²|km²|m²|mi²|mm²|yd²",
    "atmospheric_pressure": "Pa|bar|cbar|hPa|inHg|kPa|mbar|mmHg|psi",
    "battery": "%",
    "blood_glucose_concentration": "mg/dL|mmol/L",
    "carbon_dioxide": "ppm",
    "carbon_monoxide": "ppm",
    "conductivity": "S/cm|mS/cm|µS/cm",
    "current": "A|mA",
    "data_rate": "B/s|GB/s|Gbit/s|GiB/s|KiB/s|MB/s|Mbit/s|MiB/s|bit/s|kB/s|kbit/s",
    "data_size": "B|EB|EiB|GB|Gbit|GiB|KiB|MB|Mbit|MiB|PB|PiB|TB|TiB|YB|YiB|ZB|ZiB|bit|kB|kbit",
    "distance": "cm|ft|in|km|m|mi|mm|nmi|yd",
    "duration": "d|h|min|ms|s",
    "energy": "GJ|GWh|Gcal|J|MJ|MWh|Mcal|TWh|Wh|cal|kJ|kWh|kcal|mWh",
    "energy_storage": "GJ|GWh|Gcal|J|MJ|MWh|Mcal|TWh|Wh|cal|kJ|kWh|kcal|mWh",
    "frequency": "GHz|Hz|MHz|kHz",
    "gas": "CCF|ft³|m³",
    "humidity": "%",
    "illuminance": "lx",
    "irradiance": "BTU/(h⋅ft²)|W/m²",
    "moisture": "%",
    "nitrogen_dioxide": "µg/m³",
    "nitrogen_monoxide": "µg/m³",
    "nitrous_oxide": "µg/m³",
    "ozone": "µg/m³",
    "ph": "",
    "pm1": "µg/m³",
    "pm10": "µg/m³",
    "pm25": "µg/m³",
    "power": "GW|MW|TW|W|kW",
    "power_factor": "|%",
    "precipitation": "cm|in|mm",
    "precipitation_intensity": "in/d|in/h|mm/d|mm/h",
    "pressure": "Pa|bar|cbar|hPa|inHg|kPa|mbar|mmHg|psi",
    "reactive_power": "var",
    "signal_strength": "dB|dBm",
    "sound_pressure": "dB|dBA",
    "speed": "Beaufort|ft/s|in/d|in/h|in/s|km/h|kn|m/s|mm/d|mm/h|mm/s|mph",
    "sulphur_dioxide": "µg/m³",
    "temperature": "°C|°F|K",
    "volatile_organic_compounds": "µg/m³",
    "volatile_organic_compounds_parts": "ppb|ppm",
    "voltage": "V|mV|µV",
    "volume": "CCF|L|fl. oz.|ft³|gal|mL|m³",
    "volume_flow_rate": "L/min|ft³/min|gal/min|mL/s|m³/h",
    "volume_storage": "CCF|L|fl. oz.|ft³|gal|mL|m³",
    "water": "CCF|L|ft³|gal|m³",
    "weight": "g|kg|lb|mg|oz|st|µg",
    "wind_speed": "Beaufort|ft/s|in/s|km/h|kn|m/s|mm/s|mph",
}

UNITS: Mapping[str, tuple[str, ...]] = {one: tuple(units.split("|")) for one, units in _UNITS_AS_TEXT.items()}
"""The device classes of sensors with numbers, each with the units that it takes; an empty one is none at all."""

_TOTALS_TOO = frozenset({"area", "data_size", "distance", "duration", "precipitation", "weight"})
_TOTALS_ONLY = frozenset({"energy", "gas", "volume", "water"})
_LONGEST = 100
_MOST_DIGITS = 15


def state_classes(device_class: str | None) -> tuple[str, ...]:
    """What Home Assistant takes with a device class, or without one."""
    if device_class in _TOTALS_ONLY:
        return ("total", "total_increasing")
    if device_class is None or device_class in _TOTALS_TOO:
        return ("measurement", "total", "total_increasing")
    return ("measurement",)


def unit_for_home_assistant(unit: str | None) -> str:
    """As all versions take it, where there are two letters for micro: older ones do not know the Greek one."""
    return (unit or "").replace("\u03bc", "\u00b5").strip()


def _shown(text: str) -> str:
    if found := UNSENDABLE.search(text):
        raise mistake(f"holds the character U+{ord(found[0]):04X}", "use plain characters")
    if len(text) > _LONGEST:
        raise mistake(f"must have at most {_LONGEST} characters")
    return text


def _icon(icon: str) -> str:
    if not re.fullmatch(r"mdi:[a-z0-9]+(-[a-z0-9]+)*", icon):
        raise mistake("must be the name of an icon", "mdi:heart-pulse, out of pictogrammers.com/library/mdi")
    return icon


def _device_class(name: str) -> str:
    if name not in UNITS:
        close = closest(name.lower(), UNITS)
        hint = f"did you mean {close}?" if close else f"known: {', '.join(UNITS)}"
        raise mistake("is not a device class of a sensor with numbers", hint)
    return name


def _precision(digits: int) -> int:
    if not 0 <= digits <= _MOST_DIGITS:
        raise mistake(f"must be a whole number from 0 to {_MOST_DIGITS}", "digits after the decimal point")
    return digits


Shown = Annotated[str, AfterValidator(_shown)]


class DatatypeConfig(Section):
    name: Annotated[Text, AfterValidator(_shown)] | None = Field(default=None, description="Display name")
    unit: Shown | None = Field(default=None, description='Unit of its values; "": none')
    icon: (
        Annotated[str, AfterValidator(_icon), WithJsonSchema({"type": "string", "pattern": r"^(mdi:|\$\{)"})] | None
    ) = Field(default=None, description="Icon in Home Assistant: mdi:...")
    device_class: (
        Annotated[str, AfterValidator(_device_class), WithJsonSchema({"type": "string", "enum": list(UNITS)})] | None
    ) = Field(default=None, description="Device class in Home Assistant; the unit must be one of its units")
    state_class: Literal["measurement", "total", "total_increasing"] = Field(
        default="measurement", description="State class in Home Assistant, of which it makes statistics"
    )
    precision: Annotated[WholeNumber, AfterValidator(_precision)] | None = Field(
        default=None, description="Digits after the decimal point in Home Assistant"
    )
    category: Literal["diagnostic"] | None = Field(
        default=None, description="Home Assistant shows it among the diagnostic entities"
    )
    enabled: bool = Field(default=True, description="false: Home Assistant adds its entities disabled")

    @property
    def unit_fits(self) -> bool:
        return self.device_class is None or unit_for_home_assistant(self.unit) in UNITS[self.device_class]


KNOWN_DATATYPES: Mapping[int, DatatypeConfig] = {
    6000: DatatypeConfig(name="Heart rate", unit="bpm", icon="mdi:heart-pulse", precision=0),
    6001: DatatypeConfig(name="Respiration rate", unit="breaths/min", icon="mdi:lungs", precision=1),
    6002: DatatypeConfig(name="Oxygen saturation", unit="%", icon="mdi:water-percent", precision=1),
    6011: DatatypeConfig(name="Body weight", unit="kg", icon="mdi:scale-bathroom", device_class="weight", precision=2),
}


def over_the_known(number: int, entry: DatatypeConfig) -> DatatypeConfig:
    """An entry with what it leaves out from the built-in one."""
    known = KNOWN_DATATYPES.get(number, DatatypeConfig())
    both = known.model_copy(update=entry.model_dump(exclude_unset=True))
    if entry.device_class is None and not (both.unit_fits and both.state_class in state_classes(both.device_class)):
        # Whoever changes the unit alone knows nothing of the built-in class.
        return both.model_copy(update={"device_class": None})
    return both


def mistakes_between(given: Any) -> Iterator[Mistake]:
    """What is wrong between the keys of an entry. A key that is wrong alone is known already."""
    for number, entry in given.items() if isinstance(given, dict) else ():
        try:
            meaning = over_the_known(int(number), DatatypeConfig.model_validate(entry))
        except (ValueError, TypeError):
            continue
        path, device_class = f"datatypes.{number}", meaning.device_class
        if device_class is None:
            continue
        units = UNITS[device_class]
        if not meaning.unit_fits:
            named = ", ".join(unit or '""' for unit in units)
            if not meaning.unit:
                yield Mistake(f"{path}.unit", f"is missing: device_class {device_class} needs one", f"one of {named}")
            else:
                key, other = "device_class", f"unit {meaning.unit!r}"
                if entry.get("unit") is not None:
                    key, other = "unit", f"device_class {device_class}"
                yield Mistake(f"{path}.{key}", f"does not go with the {other}", f"units of {device_class}: {named}")
        if meaning.state_class not in (allowed := state_classes(device_class)):
            yield Mistake(
                f"{path}.state_class", f"does not go with device_class {device_class}", f"use {' or '.join(allowed)}"
            )
