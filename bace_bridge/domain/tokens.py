import msgspec


class Token(msgspec.Struct, frozen=True):
    """An access token of the cloud; `expires_at` is in epoch seconds."""

    access: str
    refresh: str | None
    expires_at: float
