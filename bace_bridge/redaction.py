"""Takes secrets out of texts that somebody else wrote, however they are written down in them. Pure."""

import base64
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple
from unicodedata import normalize

Quote = Callable[[str, int], str]
"""From somebody's text, and the most characters that are wanted of it, to what may be shown of it."""

MASK = "***"

SHORTEST = 4
"""Characters. A shorter secret occurs in words by chance, so it is masked only where it stands alone."""

_MOST_TOKENS = 32
_MOST_READ = 4096
"""Characters of a text of which a beginning is wanted: it may have millions."""
_DEEPEST = 4
"""How often a text may have been encoded: a URL in JSON in HTML in JSON."""

_SHORTEST_BEGINNING = 3
"""Characters of a secret that are looked for at the end of base64 that was cut off."""

_ESCAPE = re.compile(
    r"(?P<percent>(?:%[0-9A-Fa-f]{2})+)"
    r"|\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[\"'\\/bfnrt])"
    r"|&(?:\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
)
_HALF = re.compile(
    r"(?:%[0-9A-Fa-f]?|\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\?|u[0-9a-fA-F]{0,3}|x[0-9a-fA-F]?)?|&\#?[0-9A-Za-z]{0,31})+$"
)
"""The beginning of an escape, or of one within another, at the end."""
_LONGEST_HALF = 64
_SIMPLE = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# The one secret that is not known: each message has links of its own to a CSV, and a receiver may repeat the message.
_LINK = re.compile(r"\bsignature=([A-Za-z0-9_-]+)")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{6,}={0,2}")


def quoted_as_it_is(text: str, longest: int) -> str:
    """Where no secret is known."""
    return text[:longest]


class _Level(NamedTuple):
    """A text, decoded so and so often; `at[i]` is where its i-th character begins in what came, `at[-1]` its end."""

    text: str
    at: Sequence[int]


class Redaction:
    """Knows the secrets, and puts `***` in their place: plain, or as JSON, URLs, HTML and base64 have them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # A dict keeps their order, so that the same text is always masked in the same way.
        self._secrets: dict[str, None] = {}
        self._tokens: deque[str] = deque(maxlen=_MOST_TOKENS)
        self._known = _known(())
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """For ever: an old password may be good elsewhere."""
        self._secrets.update(dict.fromkeys(secrets))
        self._known = _known((*self._secrets, *self._tokens))

    def learn_token(self, *tokens: str | None) -> None:
        """The last ones are remembered: a new one comes at least daily."""
        new = [one for one in tokens if one and one not in self._tokens]
        if new:
            self._tokens.extend(new)
            self.learn(())

    def __call__(self, text: str, *, also: Iterable[str] = (), cut_off: bool = False) -> str:
        """`also` are more secrets, for this once; `cut_off`: the text may end within one."""
        more = tuple(also)
        known = _known((*self._secrets, *self._tokens, *more)) if more else self._known
        # Every level is searched, but it is the text as it came that is shown: only the secrets in it are replaced.
        spans = sorted(span for level in _levels(text) for span in _spans(level, known, cut_off=cut_off))
        pieces: list[str] = []
        end = 0
        for start, stop in spans:
            if start >= end:  # else it overlaps the one before
                pieces += (text[end:start], MASK)
            end = max(end, stop)
        return "".join([*pieces, text[end:]])

    def quoted(self, text: str, longest: int, *, also: Iterable[str] = ()) -> str:
        """The beginning of a text. Shortened first, it could end with half of a secret, which is not recognised."""
        return self(text[:_MOST_READ], also=also, cut_off=len(text) > _MOST_READ)[:longest]


class _Known(NamedTuple):
    """The forms that are looked for; those that are `short`; what base64 makes of the others, and of CSV links."""

    forms: Sequence[str]
    short: Sequence[str]
    cores: Sequence[str]
    of_links: Sequence[str]


def _known(secrets: Iterable[str]) -> _Known:
    forms = tuple(dict.fromkeys(form for secret in secrets for form in _forms_of(secret) if form))
    short = tuple(form for form in forms if len(form) < SHORTEST)
    long = (form for form in forms if len(form) >= SHORTEST)
    of_links = tuple(dict.fromkeys(_cores("signature=")))
    return _Known(forms, short, tuple(dict.fromkeys(core for form in long for core in _cores(form))), of_links)


def _cores(secret: str) -> Iterator[str]:
    """The digits of base64 that stand for the secret alone, by how many bytes are before it."""
    # Base64 takes three bytes at a time, so the secret's digits depend on how many bytes of a group precede it. The
    # digits at both ends mix it with its neighbours: only those between stand for it alone.
    for raw in {secret.encode("utf-8", "replace"), secret.encode("latin-1", "replace")}:
        for before in range(3):
            first, last = -(-8 * before // 6), 8 * (before + len(raw)) // 6
            core = base64.b64encode(bytes(before) + raw).decode()[first:last]
            yield core
            yield core.replace("+", "-").replace("/", "_")


def _forms_of(secret: str) -> Iterator[str]:
    """As it is; decoded, since texts are; composed and decomposed; and what other encodings make of its characters."""
    for text, _ in _levels(secret):
        for one in (text, normalize("NFC", text), normalize("NFD", text)):
            yield one
            yield one.replace(" ", "+")
            if not one.isascii():
                yield one.encode("utf-8", "replace").decode("latin-1")
                yield one.encode("latin-1", "replace").decode("utf-8", "replace")
                yield one.encode("ascii", "replace").decode()


def _levels(text: str) -> Iterator[_Level]:
    # Each level remembers where its characters came from, so a secret that is found deep inside is masked outside.
    level: _Level | None = _Level(text, range(len(text) + 1))
    for _ in range(_DEEPEST + 1):
        if level is None:
            return
        yield level
        level = _decoded(level)


def _decoded(level: _Level) -> _Level | None:
    """None where nothing in it is encoded."""
    pieces: list[str] = []
    at: list[int] = []
    end = 0
    for escape in _ESCAPE.finditer(level.text):
        pieces.append(level.text[end : escape.start()])
        at.extend(level.at[end : escape.start()])
        for char, offset in _characters(escape):
            pieces.append(char)
            at.append(level.at[escape.start() + offset])
        end = escape.end()
    if not end:
        return None
    pieces.append(level.text[end:])
    at.extend(level.at[end:])
    return _Level("".join(pieces), at)


def _characters(escape: re.Match[str]) -> Iterator[tuple[str, int]]:
    """What is meant, each character with the place of its beginning in the escape."""
    written = escape[0]
    if escape["percent"]:
        raw = bytes.fromhex(written.replace("%", ""))
        try:
            chars, encoding = raw.decode(), "utf-8"
        except UnicodeDecodeError:
            chars, encoding = raw.decode("latin-1"), "latin-1"
        offset = 0
        for char in chars:
            yield char, offset
            offset += 3 * len(char.encode(encoding))
    elif written[0] == "&":
        from html import unescape  # noqa: PLC0415  # all entities of HTML are half a megabyte

        yield from ((char, 0) for char in unescape(written))
    elif written[1] == "u":
        units = bytes.fromhex(written.replace("\\u", ""))
        yield units.decode("utf-16-be", "replace"), 0
    elif written[1] == "x":
        yield bytes.fromhex(written[2:]).decode("latin-1"), 0
    else:
        yield _SIMPLE.get(written[1], written[1]), 0


def _spans(level: _Level, known: _Known, *, cut_off: bool) -> Iterator[tuple[int, int]]:
    """Where the secrets are in what came."""
    text, at = level
    for secret in [one for one in known.forms if one in text]:
        for start in _starts(text, secret):
            yield at[start], at[start + len(secret)]
    for link in _LINK.finditer(text):
        yield at[link.start(1)], at[link.end(1)]
    if cut_off:
        half = _HALF.search(text, max(0, len(text) - _LONGEST_HALF))
        for whole in {text, text[: half.start()] if half else text}:
            if size := _beginning(whole, known.forms, shortest=1):
                yield at[len(whole) - size], at[-1]
    cores = [one for one in (*known.cores, *known.of_links) if one in text]
    if cores or known.short or cut_off:
        for run in _BASE64.finditer(text):
            # Text within base64 begins at one of three offsets, and so does the end that was cut off.
            ends_there = cut_off and run.end() == len(text)
            if any(one in run[0] for one in cores) or _means_a_secret(run[0], known, ends_there=ends_there):
                yield at[run.start()], at[run.end()]


def _starts(text: str, secret: str) -> Iterator[int]:
    start = text.find(secret)
    while start >= 0:
        end = start + len(secret)
        if len(secret) >= SHORTEST or not (text[max(0, start - 1) : start].isalnum() or text[end : end + 1].isalnum()):
            yield start
        start = text.find(secret, start + 1)


def _means_a_secret(run: str, known: _Known, *, ends_there: bool) -> bool:
    """A short secret counts where plain text comes out: what is no base64 means anything."""
    if not known.short and not ends_there:
        return False
    digits = run.rstrip("=").replace("-", "+").replace("_", "/")
    for skipped in range(4):  # what is before it may belong to it, or not
        part = digits[skipped:]
        part = part[:-1] if len(part) % 4 == 1 else part
        line = base64.b64decode(part + "=" * (-len(part) % 4)).decode("latin-1")
        plain = line.isascii() and line.isprintable()
        if plain and any(True for one in known.short for _ in _starts(line, one)):
            return True
        if ends_there and _beginning(line, known.forms, shortest=_SHORTEST_BEGINNING):
            return True
    return False


def _beginning(text: str, secrets: Sequence[str], *, shortest: int) -> int:
    """How many characters of the beginning of a secret are the end of the text."""
    sizes = [
        size
        for secret in secrets
        if len(secret) >= SHORTEST
        for size in range(shortest, min(len(secret), len(text)) + 1)
        if text.endswith(secret[:size])
    ]
    return max(sizes, default=0)
