"""Start a run from weights that another tool, or an export, wrote as safetensors.

Each rank reads just the bytes that it needs. What has the run's own element type is copied as bytes
straight to where it lives, so an export comes back bit for bit; any other is cast in batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tidemill.checkpoint import content
from tidemill.checkpoint.foreign import KEY, Weights, read_weights
from tidemill.checkpoint.fragments import StoredTensor, Wanted, plan_copies
from tidemill.checkpoint.manifest import StoredFile
from tidemill.checkpoint.ranges import read_ranges
from tidemill.errors import CheckpointError, CorruptCheckpoint
from tidemill.spec.progress import Fragment, State
from tidemill.storage import Location

PREFIXES = ("param.", "buffer.")
BATCH = 2**26
"""Bytes read at once, on each rank, of what is to be cast."""
FEW = 3


def tied_names(model: nn.Module) -> dict[str, str]:
    """Further names of parameters and buffers that a model has under several.

    Args:
        model: As it was built; a strategy may break ties.

    Returns:
        The name that a checkpoint knows, by each further name.
    """
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    for name, tensor in every:
        first.setdefault(id(tensor), name)
    return {name: first[id(tensor)] for name, tensor in every if first[id(tensor)] != name}


def fill_from_safetensors(
    state: State, source: Location, tied: Mapping[str, str] | None = None
) -> None:
    """Fill the parameters and buffers of a state in place; the rest stays as it is.

    Does not communicate, so all ranks can do it at once and compare notes afterwards.

    Args:
        state: What this rank wants, see `Engine.wanted`.
        source: A safetensors file, or a directory with `model.safetensors` or with its index.
        tied: What `tied_names` found; a tied tensor may be stored under any or all of its names.

    Raises:
        CheckpointError: The files are damaged or cannot be read, or they do not hold just the
            tensors of the model: says which. The state may be half filled.
    """
    weights = read_weights(source)
    files = _Files(weights)
    stored, twins = _match(state, weights, source, tied or {})
    targets = [target for target in content.find_targets(state) if target.wanted.name in stored]
    same, other = [], []
    for target in targets:
        name = target.wanted.name
        is_same = stored[name].dtype == state.tensors[name].dtype
        (same if is_same else other).append(target)
    try:
        files.copy(same, stored)
        for _, live, elements in files.read(other, stored, state):
            live.copy_(elements)
        for twin in twins:
            held = [target for target in targets if target.wanted.name in twin]
            for name, live, elements in files.read(held, twin, state):
                _require_equal(source, name, live, elements)
    except CorruptCheckpoint as error:
        raise CheckpointError(f"{KEY}: {source}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Files:
    """Safetensors files as a source of live tensors."""

    weights: Weights

    def copy(self, targets: Sequence[content.Target], stored: Mapping[str, StoredTensor]) -> None:
        """Fill live memory with the very bytes."""
        plan = plan_copies([target.wanted for target in targets], stored)
        content.fill(targets, plan, self._source, self._files, verify=False)

    def read(
        self, targets: Sequence[content.Target], stored: Mapping[str, StoredTensor], state: State
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, live range, the elements stored for it) for all of the targets."""
        wanted = [
            Wanted(name, target.wanted.start, target.wanted.count, _dtype(stored[name]).itemsize)
            for target in targets
            for name in [target.wanted.name]
        ]
        for index, want, elements in read_ranges(
            wanted, stored, self._source, self._files, most=BATCH, verify=False
        ):
            target = targets[index]
            live = target.memory.view(_dtype(state.tensors[want.name]))
            yield want.name, live[want.start - target.wanted.start :][: want.count], elements

    @property
    def _source(self) -> content.Source:
        return content.StoredSource(self.weights.place)

    @property
    def _files(self) -> dict[str, StoredFile]:
        return {name: StoredFile(size, size, "") for name, size in self.weights.files.items()}


def _match(
    state: State, weights: Weights, source: Location, tied: Mapping[str, str]
) -> tuple[dict[str, StoredTensor], list[dict[str, StoredTensor]]]:
    """What fills each tensor of the model, and what further copies of tied ones there are.

    Raises:
        CheckpointError: Names are missing or left over, or shapes or types differ.
    """
    live = {name.partition(".")[2]: name for name in state.tensors if name.startswith(PREFIXES)}
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    left: list[str] = []
    for name, tensor in sorted(
        weights.tensors.items(), key=lambda item: (item[0] in tied, item[0])
    ):
        target = live.get(tied.get(name, name))
        if target is None:
            left.append(name)
            continue
        found.setdefault(target, []).append(name)
        fragment = state.tensors[target]
        if (tensor.shape, tensor.dtype) != (tuple(fragment.shape), fragment.dtype) and not (
            tensor.shape == tuple(fragment.shape) and _are_floating(tensor, fragment)
        ):
            problems.append(
                f"{name} is {tensor.dtype} {list(tensor.shape)} there and {fragment.dtype} "
                f"{list(fragment.shape)} in the model"
            )
    missing = [name for name, target in live.items() if target not in found]
    told = [_few(missing, "missing"), _few(left, "unknown to the model"), _few(problems, "")]
    if missing or left or problems:
        raise CheckpointError(f"{KEY}: {source} does not fit: {'; '.join(filter(None, told))}")
    most = max((len(names) for names in found.values()), default=0)
    layers = [
        {
            target: weights.tensors[names[number]]
            for target, names in found.items()
            if number < len(names)
        }
        for number in range(most)
    ]
    return (layers[0], layers[1:]) if layers else ({}, [])


def _few(names: Sequence[str], what: str) -> str:
    """The first of `names`, how many more there are, and what is the matter with them."""
    told = ", ".join(names[:FEW])
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    verb = f" {'is' if len(names) == 1 else 'are'} {what}" if what else ""
    return f"{told}{more}{verb}" if names else ""


def _are_floating(stored: StoredTensor, fragment: Fragment) -> bool:
    return _dtype(stored).is_floating_point and _dtype(fragment).is_floating_point


def _dtype(held: StoredTensor | Fragment) -> torch.dtype:
    return content.dtype_of(held.dtype)


def _require_equal(source: Location, name: str, live: Tensor, elements: Tensor) -> None:
    """Refuse two unequal tensors for one that the model has under two names."""
    mine, theirs = live.cpu(), elements.to(live.dtype)
    if not torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8)):
        raise CheckpointError(
            f"{KEY}: {source}: {name.partition('.')[2]} is there under several names with "
            "different values, and the model ties them; untie them in the model"
        )
