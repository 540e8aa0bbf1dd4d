"""One page, on a terminal and as Markdown: nothing is in one that is not in the other."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group

from tidemill.report.blocks import Commands, Grid, Heading, Lines, as_markdown, on_screen

BLOCKS = (
    Heading("machines"),
    Grid(("name", ">cost"), (("a | b", "$1.00"), ("c", "$22.00"))),
    Lines(("one thing", "another [bold]thing")),
    Commands(("# begin", "python jobs/train.py " + "scale.workers=8 " * 20)),
)


def test_markdown_has_a_row_that_parts_and_no_pipe_too_many() -> None:
    text = as_markdown("A plan", BLOCKS)
    assert text.startswith("# A plan\n\n## machines\n\n| name | cost |\n| --- | ---: |\n")
    assert "| a &#124; b | $1.00 |" in text
    assert "- another [bold]thing\n" in text
    assert "```bash\n# begin\npython jobs/train.py " in text
    assert text.endswith("```\n")


texts = st.text(st.sampled_from("a |\n\r\u2028-`#$1"), max_size=12)
grids = st.integers(1, 4).flatmap(
    lambda columns: st.builds(
        lambda heads, rows: Grid(tuple(heads), tuple(map(tuple, rows))),
        st.lists(st.sampled_from(["cost", ">cost", "a|b"]), min_size=columns, max_size=columns),
        st.lists(st.lists(texts, min_size=columns, max_size=columns), max_size=3),
    )
)


@given(grids)
def test_whatever_is_in_a_cell_a_table_stays_a_table(grid: Grid) -> None:
    _, _, heads, parts, *rows, end = as_markdown("A plan", [grid]).split("\n")
    assert end == ""
    assert len(rows) == len(grid.rows)
    for row in (heads, parts, *rows):
        assert row.startswith("| ")
        assert row.endswith(" |")
        assert row.count("|") == len(grid.heads) + 1
    assert parts.split()[1::2] == ["---:" if h.startswith(">") else "---" for h in grid.heads]


def test_what_a_vendor_says_in_two_lines_is_one_point_of_a_list() -> None:
    text = as_markdown("A plan", [Lines(("vast: no\n\n# answer", "runpod: none"))])
    assert text == "# A plan\n\n- vast: no # answer\n- runpod: none\n"


def test_a_narrow_terminal_cuts_no_command() -> None:
    for width in (40, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(Group(*on_screen(BLOCKS)), highlight=False, crop=False)
        shown = console.export_text()
        assert "scale.workers=8 " * 19 in shown
        assert "another [bold]thing" in shown
        assert "$22.00" in shown
