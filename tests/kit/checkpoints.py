"""Save an engine's state and load it into another, as a worker does it, without a run around it."""

from __future__ import annotations

from typing import Any

from tests.kit.training import Memory
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.manifest import Header, Manifest
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.store import Store
from tidemill.spec.progress import Cursor, World
from tidemill.spec.run import RunSpec
from tidemill.storage import locate
from tidemill.train.engine import Engine


def open_store(world: World, run: RunSpec, place: str) -> Store:
    """The store of `run` in the directory `place`."""
    header = Header(
        run=run.name,
        digest=run.digest(),
        identity=run.identity(),
        corpus_digest="",
        strategy=run.strategy.name,
        precision=run.precision.kind.value,
    )
    return Store(
        locate(place),
        header=header,
        world=world,
        exchange=Exchange(world),
        recorder=Memory(),
        keep=Keep(last=1),
    )


def save_here(world: World, run: RunSpec, engine: Engine, place: str, cursor: Cursor) -> None:
    """Commit a checkpoint."""
    store = open_store(world, run, place)
    store.save(engine.state(), cursor, {})
    store.finish()
    store.close()


def load_here(world: World, run: RunSpec, engine: Engine, place: str) -> Manifest | None:
    """Restore the newest checkpoint; None if there is none."""
    store, wanted = open_store(world, run, place), engine.wanted()
    found = store.load(wanted, _never)
    store.close()
    if found is None:
        return None
    engine.restore(wanted)
    return found.manifest


def _never(*refused: Any) -> None:
    raise AssertionError(refused)
