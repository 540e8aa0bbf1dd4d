"""Imported last by the server of ranks: what it holds by now is no rank's to collect.

A collection looks at every object there is, and in a forked process to look is to copy the page.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
