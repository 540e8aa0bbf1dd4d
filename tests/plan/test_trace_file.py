"""Every format in which traces are published is read, and a bad line is named."""

from __future__ import annotations

import math

import pytest

from tidemill.errors import SpecError
from tidemill.plan.trace import Stay
from tidemill.plan.trace_file import parse_trace

BAMBOO = """\
# recorded by hand
0,add,a
0,add,b

2000,notice,a
5000,remove,a
6000,add,a
7000,no-op,
"""
COUNTS = "0,1\n0,2\n1000,3\n4000,1\n9000,1\n"
JSON_LINES = """\
[0, "add", {"nodes": ["a", "b"], "duration": 1000, "throughput_opt_strategy": [4, 8]}]
[1000, "no-op", {"nodes": [], "duration": 1000}]
[2000, "remove", {"nodes": ["b"], "duration": 1500}]
"""
TABLE = """\
scheduled_at,here,there
2025-10-03T17:10:00.002281-07:00,2,0
2025-10-03T17:20:00.002281-07:00,1,3
2025-10-03T17:30:00.002281-07:00,1,0
"""


def test_actions() -> None:
    trace = parse_trace(BAMBOO, "b.csv")
    assert trace.stays == (
        Stay(node="a", from_s=0, until_s=5, notice_s=3),
        Stay(node="b", from_s=0),
        Stay(node="a", from_s=6),
    )
    assert (trace.name, trace.duration_s) == ("b.csv", 7)


def test_counts_take_those_that_were_there_longest() -> None:
    trace = parse_trace(COUNTS, "c.csv")
    assert trace.stays == (
        Stay(node="node1", from_s=0, until_s=4),
        Stay(node="node2", from_s=0, until_s=4),
        Stay(node="node3", from_s=1),
    )
    assert trace.duration_s == 9


def test_json_lines_end_where_the_last_one_does() -> None:
    trace = parse_trace(JSON_LINES, "j.txt")
    assert trace.stays == (
        Stay(node="a", from_s=0),
        Stay(node="b", from_s=0, until_s=2),
    )
    assert trace.duration_s == 3.5


def test_a_table_is_read_by_column() -> None:
    trace = parse_trace(TABLE, "t.csv", column="there")
    assert [(stay.from_s, stay.until_s) for stay in trace.stays] == [(600, 1200)] * 3
    assert (trace.name, trace.duration_s) == ("t.csv there", 1200)
    (first, second) = parse_trace(TABLE, "t.csv", column="here").stays
    assert (first.until_s, second.until_s) == (600, math.inf)
    single = "\n".join(line.rpartition(",")[0] for line in TABLE.splitlines())
    assert len(parse_trace(single, "s.csv").stays) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# nothing\n", "x.csv holds no events"),
        ("0,add,a\nsoon,add,b\n", "x.csv line 2 ('soon,add,b') has no time: 'soon'"),
        ("0,add,a\n-5,add,b\n", "line 2 ('-5,add,b') has no time: '-5'"),
        ("5,add,a\n4,add,b\n", "line 2 ('4,add,b') goes back in time"),
        ("0,add,a\n\n1,add,a\n", "line 3 ('1,add,a') adds a, which is there already"),
        ("0,add,a\n1,remove,b\n", "line 2 ('1,remove,b') takes b, which is not there"),
        ("0,notice,a\n", "line 1 ('0,notice,a') takes a, which is not there"),
        ("0,add,a\n1,drop,a\n", "line 2 ('1,drop,a') says 'drop'; use add, remove, notice"),
        ("0,add,a\n1,add\n", "line 2 ('1,add') has 2 fields and the first line 3"),
        ("0,1,2,3\n", "line 1 ('0,1,2,3') has 4 fields"),
        ("0,1\n5,many\n", "line 2 ('5,many') has no number of machines: 'many'"),
        ("0,1\n5,-1\n", "line 2 ('5,-1') has no number of machines: '-1'"),
        ('[0, "add"]\n', "line 1 ('[0, \"add\"]') is not like the others"),
        ('[0, "add", {"nodes": ["a"]}]\n0,add,b\n', "line 2 ('0,add,b') is not like the others"),
        ("at,a\nlate,1\n", "line 2 ('late,1') has no time"),
        ("at,a\n2025-01-01T00:00,x\n", "has no number of machines: 'x'"),
        ("at,a\n2025-01-01T00:01,1\n2025-01-01T00:00,1\n", "line 3 ("),
        ("at,a\n2025-01-01T00:01,1\n2025-01-01T00:02Z,1\n", "line 3 ("),
        (TABLE, "has several columns; use column= with one of here, there"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_trace(text, "x.csv")
    assert caught.value.key == "trace"
    assert told in str(caught.value)


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(SpecError, match="has no column 'elsewhere'; use column= with one of here"):
        parse_trace(TABLE, "t.csv", column="elsewhere")
