"""The vaults of one run, on all nodes: how they are found, asked, looked after and ended.

They are named actors in a namespace of their own, so that workers and drivers find them by the key
of the run alone. Every question has a time limit: a node may be gone before Ray knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tidemill.checkpoint import manifest as manifests
from tidemill.errors import CorruptCheckpoint
from tidemill.launch.failure import one_line
from tidemill.launch.vault import Held, Vault
from tidemill.spec.run import RunSpec
from tidemill.storage import Location

NAMESPACE = "tidemill"
"""Of all vaults; workers live in that of their driver, which has a random name."""
IDLE_S = 1800.0
"""Seconds without a word after which a vault ends: its driver was killed, and nobody came back."""
TEND_S = 300.0
"""Seconds between signs of life from the driver."""
ANSWER_S = 10.0
"""Seconds that a vault has for an answer before it counts as lost."""

log = logging.getLogger(__name__)

Key = TypeVar("Key")


def run_key(run: Location, spec: RunSpec, corpus: str) -> str:
    """What the vaults of a run are called: by its place, and by what it computes from what.

    Args:
        run: The run's directory.
        spec: The run.
        corpus: Digest of what it learns from.
    """
    policy = spec.checkpoint
    origin = (policy.init_from, policy.from_run, str(policy.from_step))
    return hashlib.sha256(
        "\n".join((str(run), spec.digest(), corpus, *origin)).encode()
    ).hexdigest()[:16]


def open_vault(run: str, node: str, idle_s: float = IDLE_S) -> Any:
    """The vault of a run on a node, started if need be; returns before it has started.

    Args:
        run: What `run_key` gave.
        node: Ray's id of the node.
        idle_s: Seconds without a word after which a new one ends.

    Raises:
        RayError: Ray cannot be reached.
        ValueError: There was one and it is just ending.
    """
    return (
        ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Vault)
        .options(
            name=_prefix(run) + node,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(idle_s)
    )


def find_vaults(run: str) -> dict[str, Any]:
    """The vaults of a run by node, some of which may have died since Ray looked.

    Raises:
        RayError: Ray cannot be reached.
    """
    prefix = _prefix(run)
    found: dict[str, Any] = {}
    # Its annotation forgets that it gives dictionaries when asked for all namespaces.
    actors: list[Any] = list_named_actors(all_namespaces=True)
    for actor in actors:
        name = actor["name"]
        if actor["namespace"] == NAMESPACE and name.startswith(prefix):
            with contextlib.suppress(ValueError):  # it ended since
                found[name.removeprefix(prefix)] = ray.get_actor(name, namespace=NAMESPACE)
    return found


def forget(run: str) -> None:
    """End all vaults of a run.

    Raises:
        RayError: Ray cannot be reached.
    """
    for vault in find_vaults(run).values():
        ray.kill(vault)


def answers(asked: Mapping[Key, Any], timeout_s: float) -> Iterator[tuple[Key, Any, str]]:
    """Wait for calls that were made together.

    Args:
        asked: The references, by whatever.
        timeout_s: Seconds for all of them.

    Yields:
        Of each call its key, what it returned, and why it did not, or an empty string.
    """
    if not asked:
        return
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    for key, reference in asked.items():
        if reference not in ready:
            yield key, None, f"no answer within {timeout_s:g} s"
            continue
        try:
            yield key, ray.get(reference), ""
        except RayError as error:
            yield key, None, type(error).__name__


def survey(vaults: Mapping[str, Any]) -> dict[str, dict[str, Held]]:
    """What each vault that answers holds of each version, by node."""
    asked = {node: vault.contents.remote() for node, vault in vaults.items()}
    return {node: told for node, told, problem in answers(asked, ANSWER_S) if not problem}


def complete_versions(
    vaults: Mapping[str, Any], held: Mapping[str, Mapping[str, Held]]
) -> dict[str, bytes]:
    """Manifests of the versions that some vault heard were sealed, and all files of which are held.

    Args:
        vaults: By node.
        held: What `survey` found.
    """
    asked = {
        version: vaults[node].manifest.remote(version)
        for node, told in held.items()
        for version, of_it in told.items()
        if of_it.sealed
    }
    found: dict[str, bytes] = {}
    for version, text, problem in answers(asked, ANSWER_S):
        try:
            listed = {} if problem else manifests.decode(text, f"near memory: {version}").files
        except CorruptCheckpoint as error:
            log.warning("%s", error)
            continue
        sizes = {(name, size) for told in held.values() for name, size in _files(told, version)}
        if listed and all((name, file.size) in sizes for name, file in listed.items()):
            found[version] = text
    return found


def _files(told: Mapping[str, Held], version: str) -> Iterable[tuple[str, int]]:
    return told[version].files.items() if version in told else ()


@contextlib.contextmanager
def tended(run: str, *, anew: bool) -> Iterator[None]:
    """Look after the vaults of a run, in the driver, for as long as the run goes on.

    After a failure they stay for half an hour, for who starts the run again; after an end there is
    a checkpoint.

    Args:
        run: What `run_key` gave.
        anew: Whether vaults of this name are left by a run that is no more.

    Raises:
        RayError: Ray cannot be reached.
    """
    if anew:
        forget(run)
    over = threading.Event()
    thread = threading.Thread(target=_tend, args=(run, over), name="tend-vaults", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(ANSWER_S)
    try:
        forget(run)
    except RayError as error:
        log.warning("memory of nodes is freed in half an hour: %s", one_line(error))


def tend(run: str) -> None:
    """Let the vaults of a run know that it goes on, and end those that hold only what is over.

    Raises:
        RayError: Ray cannot be reached.
    """
    vaults = find_vaults(run)
    held = survey(vaults)
    newest = max(map(_age, complete_versions(vaults, held)), default=None)
    for node, told in held.items():
        if newest is not None and told and max(map(_age, told)) < newest:
            ray.kill(vaults[node])


def _prefix(run: str) -> str:
    return f"vault-{run}-"


def _age(version: str) -> tuple[int, int]:
    """Attempt and step: what a later attempt saved is newer, whatever its step."""
    step, attempt = manifests.parse_name(version) or (0, 0)
    return attempt, step


def _tend(run: str, over: threading.Event) -> None:
    while not over.wait(TEND_S):
        try:
            tend(run)
        except RayError as error:
            log.warning("cannot look after the memory of nodes: %s", one_line(error))
