"""What a run will need and cost, before anything is rented: `python jobs/plan.py --help`."""

import os
import sys

from tidemill.compose import compose, run_door
from tidemill.spec.doors import Format
from tidemill.spec.keys import split
from tidemill.spec.plan import PlanSpec
from tidemill.spec.run import RunSpec

OWN, RUN = split(sys.argv[1:], PlanSpec)


def main(spec: PlanSpec) -> None:
    """Plan, show, and keep what was shown."""
    run = compose(RUN, config_name="config", schema=RunSpec)

    from tidemill.cluster.forecast import keep, make_plan
    from tidemill.report.desk import Desk

    plan = make_plan(spec, run, RUN, os.environ)
    Desk(as_json=spec.format is Format.json).answer(plan.page)
    for place in keep(plan.page, spec.to) if spec.to else []:
        print(f"kept: {place}", file=sys.stderr)
    if plan.problem is not None:
        raise plan.problem


if __name__ == "__main__":
    sys.argv[1:] = OWN
    run_door(main, config_name="plan", schema=PlanSpec)
