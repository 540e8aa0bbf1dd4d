"""Which group a run gets: warm processes at once, cold ones only where there are too few."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.launch.policy import Cause, Place, Reform, ahead, form, reform, size_of


def _always(_: int) -> bool:
    return True


def _never(_: int) -> bool:
    return False


def _place(node: str, slots: int = 1, warm: int = 0, *, leaving: bool = False) -> Place:
    return Place(node=node, slots=slots, warm=warm, leaving=leaving)


def test_warm_processes_go_on_without_waiting_for_a_cold_one() -> None:
    places = [_place("a", warm=1), _place("b", warm=1), _place("c")]
    assert form(places, 1, 3) == {"a": 1, "b": 1}


def test_cold_processes_are_started_where_the_warm_ones_are_too_few() -> None:
    places = [_place("a", slots=2, warm=1), _place("b"), _place("c")]
    assert form(places, 3, 3) == {"a": 2, "b": 1}


def test_too_few_slots_make_no_group() -> None:
    assert form([_place("a"), _place("b", leaving=True)], 2, 4) is None


def test_a_group_that_is_as_it_should_be_is_left_alone() -> None:
    places = [_place("a", warm=1), _place("b", warm=1)]
    assert reform(places, {"a": 1, "b": 1}, 1, 2, _always) is None


def test_an_announced_leave_shrinks_the_group_though_growing_would_not_pay() -> None:
    places = [_place("a", warm=1), _place("b", warm=1, leaving=True)]
    assert reform(places, {"a": 1, "b": 1}, 1, 2, _never) == Reform({"a": 1}, Cause.drain)


def test_a_warm_process_takes_the_place_of_one_that_leaves() -> None:
    places = [_place("a", warm=1), _place("b", warm=1, leaving=True), _place("c", warm=1)]
    assert reform(places, {"a": 1, "b": 1}, 2, 2, _never) == Reform({"a": 1, "c": 1}, Cause.drain)


def test_a_leave_below_the_least_is_waited_out() -> None:
    places = [_place("a", warm=1), _place("b", warm=1, leaving=True), _place("c")]
    assert reform(places, {"a": 1, "b": 1}, 2, 2, _always) is None


@pytest.mark.parametrize(("pays", "grown"), [(_always, {"a": 1, "b": 1}), (_never, None)])
def test_a_group_grows_where_that_pays(pays: object, grown: Mapping[str, int] | None) -> None:
    places = [_place("a", warm=1), _place("b", warm=1)]
    found = reform(places, {"a": 1}, 1, 3, pays)  # type: ignore[arg-type]
    assert (found and found.formation) == grown


def test_a_group_with_a_node_that_does_not_answer_is_left_alone() -> None:
    places = [_place("a", warm=1), _place("b", warm=1)]
    assert reform(places, {"a": 1, "gone": 1}, 1, 3, _always) is None


def test_a_group_above_its_share_gives_workers_back() -> None:
    places = [_place("a", slots=2, warm=2), _place("b", warm=1)]
    assert reform(places, {"a": 2, "b": 1}, 1, 2, _always) == Reform({"a": 2}, Cause.share)


def test_processes_are_started_ahead_where_a_group_could_grow() -> None:
    places = [_place("a", warm=1), _place("b", slots=2), _place("c", slots=2, leaving=True)]
    assert ahead(places, {"a": 1}, 3, 0, _always) == {"b": 2}
    assert ahead(places, {"a": 1}, 2, 0, _always) == {"b": 1}
    assert ahead(places, {"a": 1}, 1, 0, _always) == {}
    assert ahead(places, {"a": 1}, 3, 0, _never) == {}


def test_processes_are_started_ahead_of_a_leave_whatever_growing_gains() -> None:
    places = [_place("a", warm=1, leaving=True), _place("b")]
    assert ahead(places, {"a": 1}, 1, 0, _never) == {"b": 1}


@pytest.mark.parametrize("pays", [_always, _never])
def test_spares_are_kept_ready_beside_a_whole_group(pays: Callable[[int], bool]) -> None:
    places = [_place("a", warm=1), _place("b", slots=2), _place("c")]
    assert ahead(places, {"a": 1}, 1, 2, pays) == {"b": 2}
    ready = [_place("a", warm=1), _place("b", slots=2, warm=2), _place("c")]
    assert ahead(ready, {"a": 1}, 1, 2, pays) == {}
    assert ahead(ready, {"a": 1}, 1, 0, pays) == {}, "more than are allowed; the pool is trimmed"
    assert reform(ready, {"a": 1}, 1, 1, pays) is None, "they wait"


@st.composite
def _clusters(draw: st.DrawFn) -> tuple[list[Place], dict[str, int], int, int]:
    places: list[Place] = []
    current: dict[str, int] = {}
    for number in range(draw(st.integers(0, 6))):
        node = f"n{number}"
        slots = draw(st.integers(1, 4))
        ours = draw(st.integers(0, slots))
        if ours:
            current[node] = ours
        warm = draw(st.integers(ours, slots))
        if draw(st.integers(0, 9)):  # else the node is gone
            places.append(_place(node, slots, warm, leaving=draw(st.booleans())))
    least = draw(st.integers(1, 4))
    return places, current, least, draw(st.integers(least, 12))


@given(_clusters())
def test_no_group_is_placed_where_it_does_not_fit(
    cluster: tuple[list[Place], dict[str, int], int, int],
) -> None:
    places, current, least, most = cluster
    known = {place.node: place for place in places}
    formed = form(places, least, most)
    reformed = reform(places, current, least, most, _always)
    for formation in (formed, reformed.formation if reformed else None):
        if formation is None:
            continue
        assert least <= size_of(formation) <= most
        for node, count in formation.items():
            assert not known[node].leaving
            assert count <= known[node].slots
    started = ahead(places, current, most, 1, _always)
    for node, count in started.items():
        assert not known[node].leaving
        assert known[node].warm + count <= known[node].slots


@given(_clusters())
def test_what_reform_chose_is_left_alone_afterwards(
    cluster: tuple[list[Place], dict[str, int], int, int],
) -> None:
    places, current, least, most = cluster
    change = reform(places, current, least, most, _always)
    if change is not None:
        assert reform(places, change.formation, least, most, _always) is None
