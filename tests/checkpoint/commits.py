"""Checkpoints made in this process, one rank each, and the ways in which they can be hurt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.checkpoint.states import make_store, make_tensors, whole
from tidemill.checkpoint.inspect import Held, look
from tidemill.checkpoint.manifest import CHECKPOINTS, MANIFEST, checkpoint_name
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.sealed import seal, unseal
from tidemill.spec.progress import Cursor, State, World
from tidemill.storage import locate

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FILE = "rank-00000.bin"


def commit(
    run: Path,
    step: int,
    *,
    attempt: int = 1,
    tensors: dict[str, Tensor] | None = None,
    state: State | None = None,
    scalars: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    **changes: Any,
) -> Held:
    """Commit a checkpoint of a run; by default its tensors follow from its step."""
    store = make_store(World(attempt=attempt), str(run), keep=Keep(last=99), **changes)
    state = state or whole(make_tensors(step) if tensors is None else tensors)
    state.scalars.update(scalars or {})
    store.save(state, Cursor(step=step, samples=8 * step), metrics or {"loss": 100.0 / step})
    assert store.finish() is not None
    store.close()
    return look(locate(str(run)) / CHECKPOINTS / checkpoint_name(step, attempt))


def tear(run: Path, step: int, attempt: int = 1) -> Path:
    """Leave what a kill amid a save leaves."""
    place = run / CHECKPOINTS / checkpoint_name(step, attempt)
    place.mkdir(parents=True)
    (place / FILE).write_bytes(b"half of it")
    return place


def flip(held: Held, byte: int) -> None:
    """Change one bit of the tensors, which no listing shows."""
    path = directory(held) / FILE
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def cut(held: Held) -> None:
    """Cut the file short."""
    path = directory(held) / FILE
    path.write_bytes(path.read_bytes()[:100])


def lose(held: Held) -> None:
    """Lose the file."""
    (directory(held) / FILE).unlink()


def scribble(held: Held) -> None:
    """Break the seal of the manifest."""
    path = directory(held) / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"world":1', b'"world":2'))


def make_foreign(held: Held) -> None:
    """Make it one of another version of Tidemill, whole by the seal."""
    path = directory(held) / MANIFEST
    plain = unseal(path.read_bytes(), "")
    path.write_bytes(seal(json.loads(json.dumps(plain)) | {"schema": 99}))


def directory(held: Held) -> Path:
    """Where it is on this disk."""
    from pathlib import Path

    return Path(held.place.path)
