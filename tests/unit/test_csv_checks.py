"""A whole CSV passes, whatever its columns; one that broke off does not, wherever and however."""

import csv
import io
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.csv.checks import LONGEST_RECORD, CsvCheck


def verdict(text: bytes, *, cuts: Sequence[int] = (), datapoints: int | None = None, framed: bool = True) -> str | None:
    check, begin = CsvCheck(), 0
    for end in [*sorted(one for one in cuts if one < len(text)), len(text)]:
        if problem := check.feed(text[begin:end]):
            return problem
        begin = end
    assert check.size == len(text)
    return check.end(datapoints=datapoints, framed=framed)


LONG = b"".join(
    [
        b"timestamp_seconds,time,source_device,datatype,value\n",
        *(b"%d.250,2026-01-01T00:00:%02d.250Z,6b88b4df-0000,6000,%d.5\n" % (1767225600 + n, n, n) for n in range(50)),
    ]
)
WIDE = b"time;6000;6001\r\n" + b"".join(b"2026-01-01 00:%02d:00;%d,5;\r\n" % (n, n) for n in range(50))
QUOTED = b'\xef\xbb\xbf"time","label","value"\n' + b"".join(
    b'"2026-01-01 00:%02d:00","Ward ""A"", bed\n%d","%d.5"\n' % (n, n, n) for n in range(50)
)
TABS = b"timestamp\tvalue\n" + b"".join(b"%d\tnull\n" % n for n in range(1767225600, 1767225650))
BARE = b"".join(b"%d,%d.25,6000\n" % (n, n % 7) for n in range(1767225600, 1767225650))
LABELS = b"time,label\n" + b"".join(b"2026-01-01 00:%02d:00,Error of sensor %d\n" % (n, n) for n in range(50))
STATES = b"time,value\n2026-01-01 00:00:00,1\n2026-01-01 00:01:00,open\n"
WHOLE = {
    "long": LONG, "wide": WIDE, "quoted": QUOTED, "tabs": TABS, "without a header": BARE, "labels": LABELS,
    "without the last line break": LONG.rstrip(), "wide, without it": WIDE.rstrip(), "quoted, without it": QUOTED[:-1],
    "no rows": b"time,value\n", "blank lines": b"\n" + LONG + b"\n\n", "numbers and texts": STATES,
    "times with a zone, and a state": b"time,value\n2026-01-01 00:00:00 UTC,1\n2026-01-01 00:01:00 UTC,open\n",
    "times in words, and a state": b"time;value\n1 Jan 2026, 1 PM;1\n1 Jan 2026, 2 PM;off\n",
    "two words": b"time,datatype,value\n1767225600,6000,71\n1767225601,7000,not worn\n",
    "a note": b"time,value,note\n1767225600,71,\n1767225601,72,sensor error\n",
    "a note in quotes": b'time,value,note\n1767225600,71,\n1767225601,72,"the sensor has failed, and was replaced"\n',
    "a state without a line break": b"time,value,state\n1767225600,71,ok\n1767225601,72,timeout",
    "a value without a line break": b"time,value\n1767225600,71\n1767225601,open",
    "a column of errors, and no rows": b"time,value,error\n", "Excel's hint": b"\xef\xbb\xbfsep=;\r\n" + WIDE,
    "a column": b"value\n1\n2\n", "empty values": b"time,a,b\n1767225600,,\n1767225601,,\n",
}  # fmt: skip


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_what_is_whole_passes(text: bytes) -> None:
    assert verdict(text) is None
    assert verdict(text, cuts=range(1, len(text), 7)) is None


MESSAGES = (
    b"An internal server error occurred.",
    b"Error: the query was cancelled, try again later",
    b'{"name":"PHP Fatal Error","message":"Allowed memory size exhausted","code":1,"status":500}',
    b'{"name":"Error",\n"message":"gone"}',
    b"<br />\n<b>Fatal error</b>: Maximum execution time of 30 seconds exceeded in <b>/srv/a.php</b>",
    b"PHP Fatal error:  Out of memory (allocated 2097152) (tried to allocate 20480), in /srv/a.php, line 1, x, y",
    b"<html><head><title>504 Gateway Time-out</title></head></html>",
    b"SQLSTATE[57014]: Query canceled: 7 ERROR: canceling statement due to statement timeout",
    b"Er is een interne serverfout opgetreden; probeer het later opnieuw",
)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("before", [b"", b"\n"], ids=["right behind it", "on a line of its own"])
@pytest.mark.parametrize("after", [b"", b"\n", b"\r\n\r\n"], ids=["no line break", "a line break", "blank lines"])
@pytest.mark.parametrize("text", [LONG, WIDE, QUOTED, TABS, BARE], ids=["long", "wide", "quoted", "tabs", "bare"])
def test_an_error_message_at_the_end_is_found_wherever_the_file_broke_off(
    text: bytes, before: bytes, message: bytes, after: bytes
) -> None:
    at_a_line = text.index(b"\n", len(text) // 2) + 1
    # A value is cut off as well as a line; behind a quote that is open the message is part of a value.
    for cut in range(at_a_line, text.index(b"\n", at_a_line + 30) + 2):
        broken = text[:cut] + before + message + after
        assert verdict(broken) is not None, broken[at_a_line - 20 :]
        assert verdict(broken, cuts=(at_a_line, cut, cut + 3)) is not None


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_in_place_of_a_csv_is_found(message: bytes) -> None:
    assert verdict(message) is not None
    assert verdict(message + b"\n", datapoints=1) is not None


def test_an_empty_answer_is_none_unless_there_are_no_datapoints() -> None:
    assert verdict(b"") == verdict(b"\r\n\n") == verdict(b"", datapoints=1) == "it is empty"
    assert verdict(b"", datapoints=0) is verdict(b"time,value\n", datapoints=0) is None
    assert verdict(b"", datapoints=0, framed=False) == "it is empty", "the connection may have broken at once"


def test_a_row_in_the_middle_with_other_columns_is_named() -> None:
    lines = LONG.splitlines(keepends=True)
    lines[20] = lines[20].replace(b",6000,", b",")
    assert verdict(b"".join(lines)) == "row 20 has 4 columns in place of 5: it breaks off"


@pytest.mark.parametrize(("datapoints", "fits"), [(49, True), (50, True), (51, False), (None, True)])
def test_where_each_row_is_a_datapoint_there_are_as_many(datapoints: int | None, fits: bool) -> None:
    assert (verdict(LONG, datapoints=datapoints) is None) is fits


@pytest.mark.parametrize(("datapoints", "fits"), [(50, True), (100, True), (101, False)])
def test_where_a_row_holds_several_there_cannot_be_more_than_its_columns(datapoints: int, fits: bool) -> None:
    assert (verdict(WIDE, datapoints=datapoints) is None) is fits


DEVICES = b"time,source_device,6000,6001\n1767225600,6b88b4df,71,16\n1767225600,7c99c5e0,72,17\n"
BUCKETS = b"timestamp_seconds,datatype,source_device,avg_val,count_val\n1767225600,6000,6b88b4df,71,60\n"


@pytest.mark.parametrize(("text", "datapoints"), [(DEVICES, 4), (BUCKETS, 60)], ids=["a row a device", "buckets"])
def test_what_has_fewer_rows_than_datapoints_is_not_refused_for_ever(text: bytes, datapoints: int) -> None:
    assert verdict(text, datapoints=datapoints) is None


@pytest.mark.parametrize("filling", [b" ", b"x", b"x ", b"1", b"1 ", b'""', b"-", b"<"])
def test_a_long_line_holds_up_nothing(filling: bytes) -> None:
    long = filling * (500_000 // len(filling))
    begun = time.process_time()
    for text in (long, long + b"\n", b"a,b\n1,2\n1" + long + b"x,2\n", b"a,b\n1,2\n1,2" + long):
        verdict(text)
    # Each took hours: the expressions tried every way to share out the blanks.
    assert time.process_time() - begun < 30


def test_without_a_length_half_a_line_at_the_end_is_a_cut() -> None:
    assert verdict(LONG, framed=False) is None
    for cut in range(len(LONG) - 60, len(LONG)):
        assert (verdict(LONG[:cut], framed=False) is None) is (LONG[:cut].endswith(b"\n")), LONG[:cut][-70:]


def test_what_is_held_is_bounded() -> None:
    check = CsvCheck()
    problems = [check.feed(b'a,"' + b"x" * 2**16) for _ in range(LONGEST_RECORD // 2**16 + 2)]
    assert problems[0] is None
    assert problems[-1] == "a line has more than 1 MiB"


cells = st.text(st.sampled_from('ab ,;"\n\r\t|.0'), max_size=6)


@given(
    rows=st.lists(st.tuples(st.integers(0, 10**9), cells, cells), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_what_a_csv_writer_writes_passes_in_any_pieces(rows: list[tuple[int, str, str]], cuts: list[int]) -> None:
    written = io.StringIO()
    writer = csv.writer(written, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(("time", "label", "note"))
    writer.writerows(rows)
    text = written.getvalue().encode()
    assert verdict(text, cuts=cuts) is None
    check = CsvCheck()
    assert check.feed(text) is None
    assert check.rows == len(rows)
