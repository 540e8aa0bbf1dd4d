"""Elastic: Ray Train's controller with groups that keep their processes.

Ray Train restarts a group by killing all of its processes. Here the survivors are parked, the dead
are left out at once, and whoever was started ahead joins them. This package alone uses what Ray
calls private; `tests/launch/test_elastic.py` holds it against the pinned version.
"""

from tidemill.launch.elastic.trainer import ElasticTrainer
from tidemill.launch.elastic.worker import MeetingConfig

__all__ = ["ElasticTrainer", "MeetingConfig"]
