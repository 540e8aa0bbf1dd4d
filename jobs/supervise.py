"""Keep a run going whose driver dies: `python jobs/supervise.py name=mine steps=10000`."""

import sys
from pathlib import Path

from tidemill.compose import compose, run_door
from tidemill.spec.keys import split
from tidemill.spec.run import RunSpec
from tidemill.spec.supervise import SuperviseSpec

OWN, RUN = split(sys.argv[1:], SuperviseSpec)


def say(line: str) -> None:
    """Show a line now, also where the output is a file."""
    print(f"supervisor: {line}", flush=True)


def main(spec: SuperviseSpec) -> None:
    """Look at the run before leaping, then start its drivers."""
    run = compose(RUN, config_name="config", schema=RunSpec)

    from tidemill.launch.supervisor import supervise

    code = supervise(spec, run, Path(__file__).resolve().with_name("train.py"), RUN, say)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    sys.argv[1:] = OWN
    run_door(main, config_name="supervise", schema=SuperviseSpec)
