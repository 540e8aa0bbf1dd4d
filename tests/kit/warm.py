"""Imported last by the server that ranks and doors are forked from.

What is done once here is done in none of them. What the server holds by now is frozen: a collection
looks at every object there is, and in a forked process to look is to copy the page.
"""

from __future__ import annotations

import gc

from tidemill.compose import compose
from tidemill.spec.run import RunSpec

compose([], config_name="config", schema=RunSpec)  # Hydra finds its plugins and builds its parser
gc.collect()
gc.freeze()
