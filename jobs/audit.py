"""Proof that a run used every sample as often as it should: `python jobs/audit.py run=hello`."""

import sys

from tidemill.compose import run_door
from tidemill.spec.doors import AuditSpec, Format


def main(spec: AuditSpec) -> None:
    """Say what the logs prove; anything that is not as it should be is exit code 1."""
    from tidemill.launch.audit import act
    from tidemill.report.desk import Desk

    code = act(spec, Desk(as_json=spec.format is Format.json))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_door(main, config_name="audit", schema=AuditSpec)
