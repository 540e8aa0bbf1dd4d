"""Machines that can be rented, and who rents them out: `python jobs/fleet.py --help`."""

import os

from tidemill.compose import run_door
from tidemill.spec.doors import Format
from tidemill.spec.fleet import FleetSpec


def main(spec: FleetSpec) -> None:
    """Look, and show."""
    from tidemill.cluster.offers import act
    from tidemill.report.desk import Desk

    Desk(as_json=spec.format is Format.json).answer(act(spec, os.environ))


if __name__ == "__main__":
    run_door(main, config_name="fleet", schema=FleetSpec, verbs="action")
