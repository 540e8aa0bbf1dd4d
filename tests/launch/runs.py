"""Small runs as they lie in storage, made in this process: texts, spec, committed checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kit.training import Memory, tiny_run
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.manifest import MANIFEST, Header, checkpoint_name
from tidemill.checkpoint.retention import Keep
from tidemill.checkpoint.store import Store
from tidemill.data.corpus import Corpus
from tidemill.errors import TidemillError
from tidemill.spec.base import to_plain
from tidemill.spec.progress import Cursor, State, World
from tidemill.spec.run import RunSpec
from tidemill.spec.training import BatchSpec, CustomModelSpec, GptSpec, TextSpec
from tidemill.storage import Location, locate, publish
from tidemill.train.engine import whole
from tidemill.train.model import build_model

SEQUENCE = 8
VOCAB = 257
CORPUS = Corpus(
    uri="",
    vocab=VOCAB,
    digest="c" * 64,
    train_tokens=100,
    val_tokens=10,
    train_documents=5,
    val_documents=1,
    byte_level=True,
)


class Table(nn.Module):
    """Logits that depend on the last token alone; refuses a longer look back than it was told."""

    def __init__(self, vocab: int, sequence: int) -> None:
        super().__init__()
        self.sequence = sequence
        self.logits = nn.Embedding(vocab, vocab)
        nn.init.zeros_(self.logits.weight)

    def forward(self, inputs_BS: Tensor) -> Tensor:
        if inputs_BS.shape[1] > self.sequence:
            raise ValueError(inputs_BS.shape)
        return self.logits(inputs_BS)


def make_table(vocab: int, sequence: int) -> nn.Module:
    """Build a `Table` that knows nothing yet."""
    return Table(vocab, sequence)


def table_that_says(follows: dict[int, dict[int, float]]) -> nn.Module:
    """Build a `Table` from the logits of what follows each token; all others are -100."""
    model = Table(VOCAB, SEQUENCE)
    with torch.no_grad():
        model.logits.weight.fill_(-100.0)
        for token, logits in follows.items():
            for following, logit in logits.items():
                model.logits.weight[token, following] = logit
    return model


def text_run(place: Path, **changes: Any) -> RunSpec:
    """A run below `place` that learns from the texts there, which are made if need be."""
    texts = place / "texts"
    if not texts.exists():
        texts.mkdir(parents=True)
        for number in range(6):
            (texts / f"{number}.txt").write_text(f"the tide comes in {number} times\n")
    fields: dict[str, Any] = {
        "name": "mill",
        "steps": 10,
        "storage": str(place / "runs"),
        "model": GptSpec(layers=1, heads=2, width=8),
        "data": TextSpec(paths=[str(texts)], held_out=0.2),
        "batch": BatchSpec(global_size=4, micro_size=2, sequence=SEQUENCE),
    }
    return tiny_run(**(fields | changes))


def table_run(place: Path, **changes: Any) -> RunSpec:
    """A run below `place` whose model is a `Table`."""
    return text_run(place, model=CustomModelSpec(factory="tests.launch.runs:make_table"), **changes)


def run_of(spec: RunSpec) -> Location:
    """The run's directory."""
    return locate(spec.storage) / spec.name


def leave_run(spec: RunSpec, corpus: Corpus = CORPUS) -> Location:
    """Leave what the driver writes about a run before it starts workers."""
    run = run_of(spec)
    publish(run / "spec.json", json.dumps(to_plain(spec)).encode())
    publish(run / "corpus.json", json.dumps(dataclasses.asdict(corpus)).encode())
    return run


def leave_checkpoint(
    spec: RunSpec,
    step: int,
    *,
    corpus: str = CORPUS.digest,
    model: nn.Module | None = None,
    attempt: int = 1,
) -> Path:
    """Commit a checkpoint of `spec` after `step` steps; give its directory.

    Args:
        spec: The run.
        step: Steps taken.
        corpus: Digest of what it has learned from.
        model: Its weights; by default those the run begins with.
        attempt: The attempt that saves it.
    """
    if model is None:
        model = build_model(spec.model, vocab=VOCAB, sequence=SEQUENCE, seed=spec.seed)
    store = Store(
        run_of(spec),
        header=Header(
            run=spec.name,
            digest=spec.digest(),
            identity=spec.identity(),
            corpus_digest=corpus,
            strategy=spec.strategy.name,
            precision=spec.precision.kind.value,
        ),
        world=World(attempt=attempt),
        exchange=Exchange(World()),
        recorder=Memory(),
        keep=Keep(last=99),
    )
    state = State({f"param.{name}": whole(tensor) for name, tensor in model.named_parameters()})
    store.save(state, Cursor(step=step, samples=step * spec.batch.global_size), {})
    store.finish()
    store.close()
    return Path(run_of(spec).path) / "checkpoints" / checkpoint_name(step, attempt)


def tear_manifest(checkpoint: Path) -> None:
    """Cut a checkpoint's manifest short."""
    manifest = checkpoint / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-20])


def flip_a_bit(checkpoint: Path) -> None:
    """Damage the tensors of a checkpoint, and nothing that a listing would show."""
    (file,) = checkpoint.glob("rank-*.bin")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def tree(place: Path) -> dict[str, bytes | None]:
    """Everything below `place`: the content of each file, None for a directory."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in place.rglob("*")
    }


@contextmanager
def refused(error: type[TidemillError], place: Path, *told: str) -> Iterator[None]:
    """Expect `error`, told in one line that holds all of `told`, and nothing changed in `place`."""
    before = tree(place)
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    for part in told:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tree(place) == before
