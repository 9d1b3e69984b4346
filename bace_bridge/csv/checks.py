"""Whether a CSV is whole, as far as it shows while it passes by. Pure; BACE documents neither columns nor separator.

A server that breaks in the middle has sent 200 long before: it ends the file with half a line and an error sentence,
and in all else the answer is a good one.
"""

import re
from dataclasses import dataclass

LONGEST_RECORD = 2**20
"""Bytes of a line, or of a record with line breaks in quotes; also the most that is held."""

_MOST_LINES = 100
"""Of the first record, which may have line breaks in quotes."""

_SEPARATORS = (b",", b";", b"\t", b"|")
_QUOTED = re.compile(rb'"[^"]*"')
_BLANK = frozenset((b"", b"\r"))
_NO_CSV = frozenset((b"<", b"{", b"["))

# Numbers, dates and times; and what stands for one that is missing.
_FIGURE = re.compile(
    rb"""\s*"?\s*([-+]?\.?[0-9][-+0-9.,:/TZ ]*([eE][-+]?[0-9]+)?|nan|[-+]?inf|infinity|null|none|n/?a|-|)\s*"?\s*""",
    re.IGNORECASE,
)
_LONGEST_FIGURE = 100
"""Bytes. Blanks fit in several places of the pattern: a long run of them would take minutes."""

_WORD = re.compile(rb"[A-Za-z]{2}")
_WORDS_OF_A_SENTENCE = 5
_WORDS_OF_A_FAILURE = 3
_FAILURE = re.compile(rb"error|exception|fatal|failed|failure|timed? ?out|cancell?ed|terminated|aborted", re.IGNORECASE)
_MARKUP = re.compile(rb"<html|<!doctype", re.IGNORECASE)

# Excel's hint, which is in no column.
_SEPARATOR_HINT = re.compile(rb'\A(\xef\xbb\xbf)?"?sep=[^\n]{1,3}\n', re.IGNORECASE)

A_ROW_A_POINT = frozenset((b"datatype", b"id_container_data_latest"))
"""BACE's names of what distinguishes datapoints at one time: with such a column each row is one datapoint.

Not `source_device`: the row of a device may hold a column a datatype.
"""

A_ROW_MANY_POINTS = frozenset((b"count_val", b"count"))
"""With such a column a row stands for as many datapoints as it says."""


@dataclass(eq=False)
class CsvCheck:
    """Takes a CSV piece by piece. `feed` and `end` return what is wrong with it, None where nothing is."""

    size: int = 0
    rows: int = 0
    header: bytes | None = None
    """Once there is one, it is a CSV."""
    _held: bytes = b""
    _separator: bytes = b","
    _columns: int = 0
    _first: bytes = b""
    _last: bytes = b""
    _a_row_a_point: bool = False
    _a_row_many_points: bool = False

    def feed(self, piece: bytes) -> str | None:
        self.size += len(piece)
        text = self._held + piece
        cut = _end_of_records(text)
        self._held = text[cut:]
        if len(self._held) > LONGEST_RECORD:
            return f"a line has more than {LONGEST_RECORD // 2**20} MiB"
        return self._records(text[:cut])

    def end(self, *, datapoints: int | None = None, framed: bool = True) -> str | None:
        """`datapoints` are those that the data session has at least, None where that is not known.

        `framed`: the connection said where the answer ends; else its end may be where it broke.
        """
        open_ended = self._held.strip(b"\r\n \0") != b""
        if open_ended:
            in_quotes = self._held.count(b'"') % 2
            problem = "it breaks off within quotes" if in_quotes else self._records(self._held + b"\n")
            if problem is not None:
                return problem
        if self.header is None:
            # A server that takes the header from the first row has none to send.
            return None if datapoints == 0 and framed else "it is empty"
        if self._ends_with_a_message(open_ended=open_ended):
            return "its last line is an error message"
        if open_ended and self.rows and not framed:
            return "it breaks off within a line"
        if datapoints is None or self._a_row_many_points:
            return None
        # In a CSV of another form a row may hold as many datapoints as it has columns beside the time.
        most = self.rows if self._a_row_a_point else self.rows * max(1, self._columns - 1)
        return None if most >= datapoints else f"it has {self.rows} rows, and the data session {datapoints} datapoints"

    def _records(self, whole: bytes) -> str | None:
        """Whole records, each with its line break."""
        if self.header is None:
            whole = _SEPARATOR_HINT.sub(b"", whole.lstrip(b"\r\n"), count=1)
        if not whole:
            return None
        # Without what is in quotes: there are separators and line breaks that are none. `""` is two of them.
        plain = _QUOTED.sub(b"", whole) if b'"' in whole else whole
        lines = plain.split(b"\n")
        lines.pop()
        if self.header is None:
            header, _, whole = whole.partition(b"\n")
            plain = lines.pop(0)
            self._separator = max(_SEPARATORS, key=plain.count)
            self._columns = plain.count(self._separator) + 1
            if self._columns == 1 and (_words(header) > 1 or header.lstrip()[:1] in _NO_CSV):
                return "it is a message and no CSV"
            self.header = header
            names = {name.strip(b' "\r\t\xef\xbb\xbf').lower() for name in header.split(self._separator)}
            self._a_row_a_point = not names.isdisjoint(A_ROW_A_POINT)
            self._a_row_many_points = not names.isdisjoint(A_ROW_MANY_POINTS)
        if not _BLANK.isdisjoint(lines):
            lines = [line for line in lines if line not in _BLANK]
        if not lines:
            return None
        # As they came: what is in quotes counts, too.
        whole = whole.strip(b"\r\n")
        if not self.rows:
            self._first = _first_record(whole)
        self._last = whole[_end_of_records(whole) :]
        return self._count(lines)

    def _count(self, lines: list[bytes]) -> str | None:
        wanted = self._columns - 1
        separator = self._separator
        if {line.count(separator) for line in lines} != {wanted}:
            at, line = next((at, one) for at, one in enumerate(lines, 1) if one.count(separator) != wanted)
            found = line.count(separator) + 1
            return f"row {self.rows + at} has {found} columns in place of {self._columns}: it breaks off"
        self.rows += len(lines)
        return None

    def _ends_with_a_message(self, *, open_ended: bool) -> bool:
        """By what the first row has in the place of the last one: words in place of figures, or of nothing.

        Where the last line has no line break, it may be the rest of a row and a message, whatever its column holds.
        """
        if not self.rows:
            return any(map(_is_message, self._cells(self.header or b"")))
        pairs = list(zip(self._cells(self._first), self._cells(self._last), strict=False))
        if not any(_is_message(last) and not _is_message(first) for first, last in pairs):
            return False
        # Where the first row has a figure, or nothing.
        words = [first for first, last in pairs if _words(last) > 1]
        return open_ended or any(
            not first.strip() or (len(first) <= _LONGEST_FIGURE and _FIGURE.fullmatch(first)) for first in words
        )

    def _cells(self, line: bytes) -> list[bytes]:
        return _QUOTED.sub(lambda quoted: quoted[0].replace(self._separator, b" "), line).split(self._separator)


def _words(text: bytes) -> int:
    return sum(_WORD.search(one) is not None for one in text.split())


def _is_message(cell: bytes) -> bool:
    """As people and servers write one; `failed`, `sensor error` and what is in quotes are values of a column, too."""
    if _QUOTED.sub(b"", cell).strip() == b"" and cell.strip():
        return False
    words = _words(cell)
    failure = words >= _WORDS_OF_A_FAILURE and _FAILURE.search(cell)
    return bool(words >= _WORDS_OF_A_SENTENCE or failure or _MARKUP.search(cell))


def _first_record(text: bytes) -> bytes:
    end = -1
    for _ in range(_MOST_LINES):
        end = text.find(b"\n", end + 1)
        if end < 0 or text.count(b'"', 0, end) % 2 == 0:
            break
    return text if end < 0 else text[:end]


def _end_of_records(text: bytes) -> int:
    """Where the last whole record ends; a line break in quotes ends none."""
    cut = text.rfind(b"\n") + 1
    if text.count(b'"', 0, cut) % 2 == 0:
        return cut
    # From the end: between each second pair of quotes, for there it is outside of them.
    closing = cut
    while True:
        closing = text.rfind(b'"', 0, closing)
        before = text.rfind(b'"', 0, closing)
        found = text.rfind(b"\n", before + 1, closing)
        if found >= 0 or before < 0:
            return found + 1
        closing = before
