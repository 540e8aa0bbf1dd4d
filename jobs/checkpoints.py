"""A run's checkpoints, listed, shown, proven, thinned out, compared: `--help` tells how."""

import sys

from tidemill.compose import run_door
from tidemill.spec.doors import CheckpointsSpec, Format


def main(spec: CheckpointsSpec) -> None:
    """Do what is asked; something that is not whole, or not equal, is exit code 1."""
    from tidemill.launch.checkpoints import act
    from tidemill.report.desk import Desk

    code = act(spec, Desk(as_json=spec.format is Format.json))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_door(main, config_name="checkpoints", schema=CheckpointsSpec, verbs="action")
