"""A run through machines that come and go, simulated or real: `python jobs/replay.py --help`."""

from pathlib import Path

from tidemill.compose import compose, run_door
from tidemill.spec.replay import ReplaySpec
from tidemill.spec.run import RunSpec


def say(line: str) -> None:
    """Show a line now, also where the output is a file."""
    print(line, flush=True)


def main(spec: ReplaySpec) -> None:
    """Replay the trace, show where the machines' time went, and say where that is written."""
    from tidemill.launch.replay import act, overrides_of

    run = compose(overrides_of(spec), config_name="config", schema=RunSpec)
    say(f"page: {act(spec, run, Path(__file__).with_name('train.py'), say)}")


if __name__ == "__main__":
    run_door(main, config_name="replay", schema=ReplaySpec)
