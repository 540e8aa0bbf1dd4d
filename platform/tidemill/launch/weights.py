"""What the smaller doors do: find a whole checkpoint of a run, and write text or weights.

No Ray, no process group: one process, the run's own spec, and the masters of its checkpoint.
"""

from __future__ import annotations

import codecs
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from tidemill.checkpoint.export import export_safetensors, read_tensors
from tidemill.checkpoint.manifest import committed
from tidemill.data.corpus import Corpus
from tidemill.errors import CheckpointError, CorruptCheckpoint, SpecError
from tidemill.launch.origin import of_step
from tidemill.spec.base import differences, from_plain
from tidemill.spec.doors import ExportSpec, GenerateSpec
from tidemill.spec.run import RunSpec
from tidemill.storage import Location, exists, locate, read_bytes
from tidemill.train.generate import sample
from tidemill.train.model import build_model

if TYPE_CHECKING:
    from torch import Tensor, nn

END_OF_DOCUMENT = 256

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run as it lies in storage."""

    spec: RunSpec
    corpus: Corpus
    checkpoints: list[Location]


def open_run(name: str, storage: str) -> TrainedRun:
    """Find a run and its checkpoints, newest first.

    Raises:
        CheckpointError: There is no such run, or it has no checkpoint yet.
    """
    run = locate(storage) / name
    if not exists(run / "spec.json"):
        raise CheckpointError(f"run: {run} is no run; check run= and storage=")
    spec = from_plain(RunSpec, json.loads(read_bytes(run / "spec.json")))
    corpus = Corpus(**json.loads(read_bytes(run / "corpus.json")))
    checkpoints = committed(run)
    if not checkpoints:
        raise CheckpointError(f"run: {run} has no checkpoint yet; train it further")
    return TrainedRun(spec, corpus, checkpoints)


def generate(asked: GenerateSpec) -> Iterator[str]:
    """Yield the prompt and then pieces of text, as they are made.

    Raises:
        SpecError: The run's tokens are not bytes.
        CheckpointError: There is no such run, none of its checkpoints is whole, or the newest whole
            one is of another model.
    """
    run = open_run(asked.run, asked.storage)
    if not run.corpus.byte_level:
        raise SpecError(
            "run",
            f"{asked.run} was trained on tokens that only its own tokenizer can turn into text",
            "export the weights with jobs/export.py and decode them there",
        )
    sequence = run.spec.batch.sequence
    model = build_model(
        run.spec.model, vocab=run.corpus.vocab, sequence=sequence, seed=run.spec.seed
    )
    tensors = _newest_whole(
        run, lambda place: {**read_tensors(place, "buffer."), **read_tensors(place, "param.")}
    )
    _require_fit(model, tensors)
    # Tied weights are stored once, under the name that comes first.
    model.load_state_dict(tensors, strict=False)
    # A command line may hold bytes that are no text; the model takes any.
    prompt = asked.prompt.encode(errors="surrogateescape")
    tokens = sample(
        model,
        list(prompt) or [END_OF_DOCUMENT],
        sequence=sequence,
        temperature=asked.temperature,
        top_k=asked.top_k,
        seed=asked.seed,
    )
    return _as_text(prompt.decode(errors="replace"), itertools.islice(tokens, asked.tokens))


def export(asked: ExportSpec) -> Location:
    """Write the weights of the newest whole checkpoint, or of the one asked for; return where.

    Raises:
        CheckpointError: There is no such run or step, or no such checkpoint is whole.
        StorageError: The target has an export already, or cannot be written.
    """
    run = open_run(asked.run, asked.storage)
    if asked.step:
        run = replace(run, checkpoints=of_step(run.checkpoints, asked.step, "step"))
    to = locate(asked.to)
    return _newest_whole(
        run,
        lambda place: export_safetensors(
            place,
            to,
            vocab=run.corpus.vocab,
            dtype=asked.dtype.torch_name,
            shard_gib=asked.shard_gib,
            overwrite=asked.overwrite,
        ),
    )


def _newest_whole(run: TrainedRun, read: Callable[[Location], T]) -> T:
    """What `read` makes of the newest checkpoint that is whole."""
    problems: list[str] = []
    for checkpoint in run.checkpoints:
        try:
            return read(checkpoint)
        except CorruptCheckpoint as error:
            logger.warning("passing over %s: %s", checkpoint.name, error)
            problems.append(str(error))
    raise CheckpointError(f"run: no checkpoint is whole ({problems[0]}); restore one from a backup")


def _require_fit(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse weights of another model than the run's code builds now."""
    kept = model.state_dict().keys()
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    live = {name: tuple(tensor.shape) for name, tensor in named if name in kept}
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, then, now in differences(stored, live):
        raise CheckpointError(
            f"model: {name} has shape {then} in the checkpoint and {now} in the model; put the "
            "model's code back as it was"
        )


def _as_text(prompt: str, tokens: Iterator[int]) -> Iterator[str]:
    """Bytes as UTF-8 as soon as they make sense, to the end of the document."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield prompt
    for token in itertools.takewhile(lambda token: token != END_OF_DOCUMENT, tokens):
        yield decoder.decode(bytes([token]))
    yield decoder.decode(b"", final=True)
