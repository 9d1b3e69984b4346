import pytest

from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.session_list import is_selected, starts_from, with_selection

START, LATER = 100.0, 900.0


def state(*groups: str) -> PollState:
    return PollState(start_from=START, watermark=START, groups=groups, active_found=True, backfill_page=7)


@pytest.mark.parametrize(
    ("groups", "label", "selected"),
    [([], None, True), (["g1"], None, True), (["BaceGo-1"], "BaceGo-1", True), (["g2"], "BaceGo-1", False)],
)
def test_a_device_is_named_by_id_or_label(groups: list[str], label: str | None, selected: bool) -> None:
    assert is_selected(groups, "g1", label) is selected


def test_an_added_device_is_reported_from_then_on_and_looked_up_at_once() -> None:
    after = with_selection(state("g1"), ["g1", "g2"], start_from=LATER)
    assert (after.catching_up, after.active_found, after.backfill_page) == (True, False, 1)
    assert starts_from(after, "g1", None) == START
    assert starts_from(after, "g2", None) == LATER
    assert starts_from(after, "g3", "g2") == LATER, "by its label"


def test_all_devices_after_some_are_reported_from_then_on_but_for_those_that_were_watched() -> None:
    after = with_selection(state("g1"), [], start_from=LATER)
    assert starts_from(after, "g1", None) == START
    assert starts_from(after, "g9", None) == LATER
    assert after.catching_up


@pytest.mark.parametrize("groups", [["g1"], ["g1", "g2"]])
def test_fewer_devices_or_the_same_need_no_scan(groups: list[str]) -> None:
    after = with_selection(state("g1", "g2"), groups, start_from=LATER)
    assert not after.catching_up
    assert after.active_found
    assert not with_selection(state(), groups, start_from=LATER).catching_up, "some of all"


def test_a_device_that_comes_back_is_reported_from_then_on() -> None:
    without = with_selection(state("g1", "g2"), ["g1"], start_from=500.0)
    assert starts_from(with_selection(without, ["g1", "g2"], start_from=LATER), "g2", None) == LATER


def test_a_state_of_an_earlier_version_takes_the_selection_as_it_is() -> None:
    before = PollState(start_from=START, watermark=START, active_found=True)
    after = with_selection(before, ["g1"], start_from=LATER)
    assert (after.groups, after.catching_up, starts_from(after, "g1", None)) == (("g1",), False, START)
