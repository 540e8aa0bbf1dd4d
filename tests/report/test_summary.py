"""A summary can be written of any run, and says how it went and what to do next."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.report.histories import History, write_log
from tidemill.report.events import EventLog
from tidemill.report.summary import write_summary
from tidemill.spec.progress import EventKind
from tidemill.storage import Location, locate

SPEC = {
    "name": "run",
    "steps": 20,
    "storage": "/shared/runs",
    "model": {"variant": "GptSpec", "layers": 4, "heads": 2, "width": 128, "dropout": 0.0},
    "data": {"variant": "TextSpec", "paths": []},
    "batch": {"global_size": 32, "micro_size": 8, "sequence": 256},
}


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(str(tmp_path)) / "run"


def summarise(run: Location, history: History | None, spec: object = SPEC) -> str:
    directory = Path(run.path)
    directory.mkdir(exist_ok=True)
    if spec is not None:
        (directory / "spec.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
    if history is not None:
        write_log(run, history.events)
    place = write_summary(run)
    assert (place.path, place.name) == (f"{run.path}/summary.md", "summary.md")
    return Path(place.path).read_text()


def attempts(text: str) -> list[list[str]]:
    """The cells of the table of attempts."""
    rows = text.split("## Attempts")[1].split("##", maxsplit=1)[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_a_finished_run(run: Location) -> None:
    history = History()
    history.start(world=4)
    history.steps(0, 9)
    history.save(10)
    history.start(world=2, restored=8)
    history.step(8, applied=False)
    history.steps(9, 19, loss=1.75)
    history.evaluate(20, loss=1.5)
    history.save(20)
    history.finish(20)
    text = summarise(run, history)
    losses = "1.0s redone, 1.0s waiting, 0.5s saving"
    for line in (
        "# run",
        "**Finished** all 20 steps.",
        "![Loss by step](loss.svg)",
        "| Model | gpt (layers 4, heads 2, width 128): 1.23M parameters |",
        "| Data | text, corpus `c0ffeec0ffee` |",
        "| Batch | 32 samples of 256 tokens |",
        "| Strategy | ddp |",
        "| Precision | fp32 |",
        "| World | 2 workers on cpu |",
        "| Training loss | 1.7500 nats per token |",
        "| Held-out loss | **2.164 bits per byte**, 1.5000 nats per token, at step 20 |",
        "| Tokens | 20.0k at 2.00k per second |",
        "| Time | 11s in 2 attempts |",
        f"| Goodput | 83.3% of 12s in steps that count; lost: {losses} |",
        "- 2 saved, 6.00 MiB in all; newest `step-0000000020-a0002` (3.00 MiB in 0.2s)",
        "- 1 attempt restored: 1 from storage",
        "- 1 step skipped because gradients were not finite: 8",
        "<details><summary>Configuration</summary>",
    ):
        assert line in text.splitlines()
    assert "- 2 steps (1.0s) lost to restarts" in text
    assert attempts(text) == [
        ["1", "2027-01-15 08:00:01", "5.0s", "4", "0", "", "10", "2.00k", "killed or lost"],
        ["2", "2027-01-15 08:00:07", "6.0s", "2", "8", "storage", "20", "2.00k", "finished"],
    ]
    assert (Path(run.path) / "loss.svg").read_bytes().startswith(b"<?xml")


def test_the_configuration_is_there_in_full(run: Location) -> None:
    history = History()
    history.start()
    block = summarise(run, history).split("```json\n")[1].split("\n```")[0]
    assert json.loads(block) == SPEC


def test_a_stopped_run(run: Location) -> None:
    history = History()
    history.start()
    history.steps(0, 6)
    history.add(EventKind.stop_requested, step=7)
    history.save(7)
    history.add(EventKind.stopped, step=7)
    text = summarise(run, history)
    assert "**Stopped** on request after step 7 of 20, with a checkpoint." in text
    assert "# go on: repeat the command that started the run" in text
    assert attempts(text)[-1][-1] == "stopped"


def test_a_failed_run(run: Location) -> None:
    history = History()
    history.start()
    history.steps(0, 2)
    error = "ValueError: `a|b` <b>is</b>\nno loss"
    history.add(EventKind.failed, rank=0, error=error, traceback="Traceback:\n  ```x```\n")
    text = summarise(run, history)
    harmless = r"`ValueError: 'a\|b' <b>is</b> no loss`"
    assert f"**Failed** after step 3 of 20: {harmless}" in text
    assert attempts(text)[-1][-1] == f"failed: {harmless}"
    assert "````text\nTraceback:\n  ```x```\n````" in text
    assert "export.py" not in text


def test_a_killed_run(run: Location) -> None:
    history = History()
    history.start()
    history.steps(0, 2)
    history.save(2)
    text = summarise(run, history)
    assert "**No last word** after step 3 of 20: killed, or still going on." in text
    assert attempts(text)[-1][-1] == "no last word: killed, or still going on"
    assert "# go on:" in text
    assert "export.py" in text


def test_a_run_that_was_killed_before_its_first_step(run: Location) -> None:
    history = History()
    history.start()
    text = summarise(run, history)
    assert "**No last word** after step 0 of 20" in text
    assert "loss.svg" not in text
    assert not (Path(run.path) / "loss.svg").exists()


def test_a_run_of_which_nothing_is_there(run: Location) -> None:
    assert "Nothing has happened yet" in summarise(run, None, spec=None)


@pytest.mark.parametrize("spec", [None, "{torn", "[]", '"text"', {"from": "the future"}])
def test_a_spec_that_cannot_be_read_costs_the_configuration_only(
    run: Location, spec: object
) -> None:
    history = History()
    history.start()
    history.steps(0, 2)
    history.save(3)
    text = summarise(run, history, spec=spec)
    assert "after step 3: killed" in text
    assert "python jobs/export.py run=run to=run-weights" in text


def test_a_run_without_checkpoints_has_no_section_about_them(run: Location) -> None:
    history = History()
    history.start()
    history.steps(0, 2)
    assert "Checkpoints" not in summarise(run, history)


def test_checkpoints_have_a_section_of_their_own(run: Location) -> None:
    history = History()
    history.start()
    history.steps(0, 9)
    history.save(10, stall_s=0.002)
    history.keep_near(12)
    history.start(restored=12, source="near")
    history.steps(12, 14)
    history.fail_save(15, retry_in_s=None)
    text = summarise(run, history)
    section = text.split("## Checkpoints\n\n")[1].split("\n\n")[0]
    assert section.splitlines()[0] == "- **1 checkpoint lost**, of step 15"
    assert len(section.splitlines()) == 6
    assert attempts(text)[1][4:6] == ["12", "near"]


def test_changes_of_the_workers_have_a_section_of_their_own(run: Location) -> None:
    history = History()
    history.start(world=3)
    history.steps(0, 9)
    history.add(EventKind.resizing, step=10, cause="drain")
    history.start(world=2, restored=10, source="memory")
    history.step(10)
    history.rejoin(11, "drain", redone=0)
    text = summarise(run, history)
    section = text.split("## Restarts\n\n")[1].split("\n\n")
    assert section[0].startswith("- 1 change of the workers: 1 because a machine leaves; 1.2s")
    assert "| 2 | 11 | drain | 3 → 2 | 2 | 0 | 0.1s |" in section[1]
    assert attempts(text)[0][-1] == "workers changed"
    assert attempts(text)[1][5] == "memory"


def test_a_run_between_two_groups_says_so(run: Location) -> None:
    history = History()
    history.start()
    history.steps(0, 9)
    history.add(EventKind.resizing, step=10, cause="grow")
    text = summarise(run, history)
    assert "**Between two groups of workers** after step 10 of 20: forming anew, or" in text
    assert "Restarts" not in text


def test_refused_checkpoints_are_told(run: Location) -> None:
    history = History()
    history.start()
    history.add(EventKind.checkpoint_refused, name="step-9", reason="size differs")
    text = summarise(run, history)
    assert "- checkpoint `step-9` refused by attempt 1: `size differs`" in text


def test_many_skipped_steps_are_counted_and_some_named(run: Location) -> None:
    history = History()
    history.start()
    for step in range(100):
        history.step(step, applied=False)
    text = summarise(run, history)
    assert "- 100 steps skipped because gradients were not finite: 0, 1, 2" in text
    assert "19, …\n" in text


def test_commands_can_be_typed_as_they_are(tmp_path: Path) -> None:
    name, storage = "lr=1,2", "s3://b/my runs?endpoint_override=h:1&scheme=http"
    history = History()
    history.start()
    history.steps(0, 2)
    history.save(3)
    text = summarise(locate(str(tmp_path)) / name, history, spec=SPEC | {"storage": storage})
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("python")]
    assert [command[1] for command in commands] == ["jobs/generate.py", "jobs/export.py"]
    for command in commands:
        overrides = OverridesParser.create().parse_overrides(command[2:])
        values = {override.key_or_group: override.value() for override in overrides}
        assert values["run"] == name
        assert values["storage"] == storage


def test_writing_it_again_changes_nothing(run: Location) -> None:
    history = History()
    history.start()
    history.steps(0, 2)
    first = summarise(run, history), (Path(run.path) / "loss.svg").read_bytes()
    again = summarise(run, None), (Path(run.path) / "loss.svg").read_bytes()
    assert first == again


def test_what_an_event_log_wrote_can_be_summarised(run: Location) -> None:
    log = EventLog(run, 1)
    log.record(EventKind.attempt_started, world=2)
    log.record(EventKind.step, step=0, loss=2.0, tokens=10, seconds=0.5, applied=True)
    log.record(EventKind.finished, step=1, loss=2.0, seconds=1.0)
    log.close()
    assert "**Finished** all 1 step." in Path(write_summary(run).path).read_text()


def test_text_that_utf_8_cannot_hold_costs_itself_alone(run: Location) -> None:
    """As in the error of a file whose name is not UTF-8."""
    history = History()
    history.start()
    history.add(EventKind.failed, rank=0, error="no \udcff.bin", traceback="open('\udcff.bin')")
    text = summarise(run, history)
    assert "**Failed** after step 0 of 20: `no \\udcff.bin`" in text
    assert "open('\\udcff.bin')" in text


@pytest.mark.parametrize("part", [None, 3, "x", []])
def test_a_part_of_the_configuration_that_makes_no_sense_is_left_out(
    run: Location, part: object
) -> None:
    history = History()
    history.start()
    history.save(0)
    text = summarise(run, history, spec=SPEC | {"model": part, "data": part, "batch": part})
    assert "| Model | 1,234,567 |" in text
    assert "| Data | corpus `c0ffeec0ffee` |" in text
    assert "| Batch |" not in text
    assert "generate.py" not in text


@pytest.mark.parametrize("bits", ["x", [], float("nan")])
def test_an_odd_result_of_a_validation_breaks_nothing(run: Location, bits: object) -> None:
    history = History()
    history.start()
    history.steps(0, 1)
    history.add(EventKind.evaluated, step=2, loss=1.5, bits_per_byte=bits)
    text = summarise(run, history)
    assert "| Held-out loss | **nan bits per byte**, 1.5000 nats per token, at step 2 |" in text


def test_times_are_the_same_everywhere(run: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        history = History()
        history.start()
        assert attempts(summarise(run, history))[0][1] == "2027-01-15 08:00:01"
    time.tzset()
