"""What datatypes mean to people and to Home Assistant: the keys of an entry of `datatypes`, and those built in."""

from typing import Literal

from pydantic import Field

from bace_bridge.config.sections import Section


class DatatypeConfig(Section):
    name: str | None = Field(default=None, description="Display name")
    unit: str | None = Field(default=None, description="Unit of its values")
    icon: str | None = Field(default=None, description="Icon in Home Assistant: mdi:...")
    device_class: str | None = Field(default=None, description="Home Assistant's device class of a sensor")
    state_class: Literal["measurement", "total", "total_increasing"] = Field(
        default="measurement", description="Home Assistant's state class"
    )
    precision: int | None = Field(default=None, description="Digits after the decimal point in Home Assistant")
    category: Literal["diagnostic"] | None = Field(default=None, description="Home Assistant's entity category")
    enabled: bool = Field(default=True, description="false: Home Assistant adds the entity disabled")


KNOWN_DATATYPES = {
    6000: DatatypeConfig(name="Heart rate", unit="bpm", icon="mdi:heart-pulse", precision=0),
    6001: DatatypeConfig(name="Respiration rate", unit="breaths/min", icon="mdi:lungs", precision=1),
    6002: DatatypeConfig(name="Oxygen saturation", unit="%", icon="mdi:water-percent", precision=1),
    6011: DatatypeConfig(name="Body weight", unit="kg", device_class="weight", precision=2),
}
