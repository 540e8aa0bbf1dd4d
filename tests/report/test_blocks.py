"""One page, on a terminal and as Markdown: nothing is in one that is not in the other."""

from __future__ import annotations

import io

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


def test_a_narrow_terminal_cuts_no_command() -> None:
    for width in (40, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(Group(*on_screen(BLOCKS)), highlight=False, crop=False)
        shown = console.export_text()
        assert "scale.workers=8 " * 19 in shown
        assert "another [bold]thing" in shown
        assert "$22.00" in shown
