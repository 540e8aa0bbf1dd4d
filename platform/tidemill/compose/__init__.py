"""Configuration files and command lines become specs here; the only room with Hydra.

Doors call `run_door`, programs call `compose`. Nobody else sees a `DictConfig`, so nothing but this
room depends on how a spec was written down.
"""

from tidemill.compose.door import compose, run_door

__all__ = ["compose", "run_door"]
