"""State in the memory of processes: what is held survives those who are lost, or is not used."""

from __future__ import annotations

import contextlib
import math
import pickle
import sys
import traceback
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.checkpoint.lives import PATIENCE, Dead, Life, at
from tests.checkpoint.states import blank, make_tensors, same_pieces, whole
from tests.kit import accessors
from tests.kit.training import SEQUENCE, STRATEGIES, VOCAB, tiny_run
from tests.kit.world import run_world
from tidemill.checkpoint import exchange as exchange_module
from tidemill.checkpoint.exchange import Exchange
from tidemill.checkpoint.memory import Memory
from tidemill.errors import CheckpointError
from tidemill.spec.progress import Fragment, Piece, State, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec
from tidemill.spec.training import PrecisionKind, PrecisionSpec
from tidemill.train.engine import Engine, build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import look_at
from tidemill.train.model import build_model

PROCESSES = 4
Scenario = Callable[[Life], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(fn: Scenario) -> Scenario:
    """A story that all processes live through, each its own part."""
    SCENARIOS[fn.__name__] = fn
    return fn


def _live(world: World, scratch: str) -> dict[str, str]:
    """Live through every scenario; the traceback of each that went wrong."""
    told: dict[str, str] = {}
    dist.barrier()
    for name, fn in SCENARIOS.items():
        place = Path(scratch) / name
        place.mkdir(exist_ok=True)
        life = Life(world.rank, place)
        try:
            fn(life)
            told[name] = ""
        except Exception:  # noqa: BLE001 - the test shows it
            told[name] = traceback.format_exc()
        life.die()
    return told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What every process tells of every scenario."""
    return run_world(_live, PROCESSES, str(tmp_path_factory.mktemp("lives")))


# --- sharded ---------------------------------------------------------------------------------


@scenario
def a_rank_is_lost_and_the_others_go_on_with_its_share(life: Life) -> None:
    if world := life.meet(1, [0, 1, 2]):
        assert life.find(world) is None, "it is a fresh run"
        assert life.begin(world, 0).newest == 0
        life.train(5)
        assert life.keeper is not None
        assert life.keeper.newest == 5
    if life.process == 2:
        life.die()
    if world := life.meet(2, [0, 1]):
        found = life.resume(world, 5)
        assert (found.attempt, found.world, found.newest) == (1, 3, True)
        assert {step for _, step, _ in life.held()} == {5}, "older versions are of no use any more"


@scenario
def newcomers_and_every_other_size_are_filled_too(life: Life) -> None:
    if world := life.meet(1, [0, 1, 2]):
        life.begin(world, 0)
        life.train(3)
    if life.process == 1:
        life.die()
    if world := life.meet(2, [3, 0, 2]):
        life.resume(world, 3)
        life.resume(World(rank=world.rank, size=3, attempt=2), 3, everything=True)
        life.begin(world, 3)
        life.train(4)
    if world := life.meet(3, [0, 1, 2, 3]):
        life.resume(world, 4, everything=life.process == 1)
        life.begin(world, 4)
        assert {attempt for attempt, _, _ in life.held()} == {3}, "what was before is dropped"


@scenario
def two_neighbours_lost_at_once_lose_a_share_and_nothing_is_made_up(life: Life) -> None:
    if world := life.meet(1, range(4)):
        life.begin(world, 0)
        life.train(3)
    if life.process in (1, 2):
        life.die()
    if world := life.meet(2, range(4)):
        assert life.find(world) is None


@scenario
def two_that_are_no_neighbours_lose_nothing(life: Life) -> None:
    if world := life.meet(1, range(4)):
        life.begin(world, 0)
        life.train(3)
    if life.process in (0, 2):
        life.die()
    if world := life.meet(2, range(4)):
        life.resume(world, 3)


@scenario
def a_node_is_lost_with_all_its_ranks(life: Life) -> None:
    if world := life.meet(1, range(4)):
        life.begin(world, 0, node="ab"[life.process // 2])
        life.train(2)
    if life.process < 2:
        life.die()
    if world := life.meet(2, [2, 3]):
        life.resume(world, 2)


@scenario
def a_rank_lost_amid_a_copy_leaves_the_version_before_it(life: Life) -> None:
    if world := life.meet(1, range(3)):
        keeper: Any = life.begin(world, 0)
        life.train(4)
        dist.barrier()
        life.update()
        if life.process == 2:
            trade = keeper._exchange.trade

            def die(outgoing: Any, incoming: Any) -> None:
                trade({}, incoming)  # what it should have sent never comes
                raise Dead

            keeper._exchange.trade = die

        def commit() -> None:
            keeper.commit(at(5))
            keeper._exchange.all_gather(None)  # who got everything hears of it here

        with pytest.raises(Dead if life.process == 2 else RuntimeError):
            commit()
        if life.process == 2:
            life.die()
    if world := life.meet(2, [0, 1]):
        found = life.resume(world, 4)
        assert not found.newest, "one of them had gone further"


@scenario
def a_rank_lost_while_state_is_restored_leaves_it_to_the_next_group(life: Life) -> None:
    if world := life.meet(1, range(4)):
        life.begin(world, 0)
        life.train(3)
    if life.process == 1:
        life.die()
    if world := life.meet(2, [0, 2, 3]):
        found = life.find(world)
        assert found is not None
        if life.process == 3:
            found.exchange.close()
        else:
            with pytest.raises(RuntimeError):
                life.memory.fill(found, whole(blank(make_tensors(3))), world)
        found.exchange.close()
    if life.process == 3:
        life.die()
    if world := life.meet(3, [0, 2]):
        life.resume(world, 3)


@scenario
def a_rank_lost_while_the_next_group_makes_its_first_copy(life: Life) -> None:
    if world := life.meet(1, range(4)):
        life.begin(world, 0)
        life.train(3)
    if life.process == 1:
        life.die()
    if world := life.meet(2, [0, 2, 3]):
        life.resume(world, 3)
        dies = life.process == 3
        with (
            mock.patch.object(Exchange, "trade", side_effect=Dead if dies else None, autospec=True)
            if dies
            else contextlib.nullcontext(),
            pytest.raises(Dead if dies else RuntimeError),
        ):
            life.begin(world, 3)
    if life.process == 3:
        life.die()
    if world := life.meet(3, [2, 0]):
        found = life.resume(world, 3)
        assert (found.attempt, found.newest) == (1, True)


@scenario
def what_an_absent_process_holds_is_no_longer_the_runs_history(life: Life) -> None:
    if world := life.meet(1, [0, 1, 3]):
        life.begin(world, 0, replicated=True)
        life.train(9)
    if world := life.meet(2, [0, 1]):
        life.begin(world, 4)  # of a checkpoint: 3 was away, and the others had lost it
        life.train(6)
    if world := life.meet(3, [0, 1, 3]):
        found = life.find(world)
        assert found is not None
        assert (found.attempt, found.cursor.step) == (2, 6)
    if life.process != 3:
        life.die()
    if world := life.meet(4, [3, 0, 1]):
        assert life.held() == ([(1, 9, 0)] if life.process == 3 else [])
        assert life.find(world) is None, "3 was in no group that trained after it"


@scenario
def who_trained_since_then_knows_that_it_is_no_longer_history(life: Life) -> None:
    if world := life.meet(1, [0, 1, 2]):
        life.begin(world, 0, replicated=True)
        life.train(9)
    if world := life.meet(2, [0, 1]):
        life.find(world)
        life.begin(world, 4, replicated=True)
        assert life.keeper is not None
        life.keeper.tear()
    if world := life.meet(3, [0, 2]):
        assert life.find(world) is None


@scenario
def copies_may_be_further_apart(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        life.begin(world, 0, every=3)
        life.train(5)
    if world := life.meet(2, [0, 1]):
        found = life.resume(world, 3)
        assert not found.newest, "a checkpoint of 4 or 5 may exist"


@scenario
def memory_is_allocated_for_two_versions_and_then_used_again(life: Life) -> None:
    if world := life.meet(1, [0, 1, 2]):
        life.begin(world, 0)
        seen: set[int] = set()
        for step in range(1, 9):
            life.train(step)
            seen |= {slab.content.data_ptr() for slab in life.memory._slabs.held.values()}
        assert len(seen) == 4, "own share and a neighbour's, of two versions"
        assert {step for _, step, _ in life.held()} == {7, 8}


# --- planned leave ---------------------------------------------------------------------------


@scenario
def neighbours_who_leave_hand_over_first(life: Life) -> None:
    if world := life.meet(1, range(4)):
        life.begin(world, 0)
        life.train(2)
        assert life.keeper is not None
        stays = life.process in (0, 1)
        life.keeper.hand_over(stays=stays)
        assert life.held() if stays else not life.held()
    if life.process in (2, 3):
        life.die()
    if world := life.meet(2, [1, 0]):
        assert life.resume(world, 2).newest


@scenario
def one_of_three_stays_and_holds_everything(life: Life) -> None:
    if world := life.meet(1, range(3)):
        life.begin(world, 0)
        life.train(2)
        assert life.keeper is not None
        life.keeper.hand_over(stays=life.process == 1)
    if world := life.meet(2, [1]):
        life.resume(world, 2, everything=True)
        life.begin(world, 2)
        life.train(4)
    if world := life.meet(3, [0, 1, 2, 3]):
        life.resume(world, 4)


@scenario
def nothing_is_lost_on_purpose_however_rarely_copies_are_made(life: Life) -> None:
    for attempt, every in ((1, 0), (2, 4)):
        if world := life.meet(attempt, range(3)):
            start = 5 * (attempt - 1)
            if attempt > 1:
                life.resume(world, start)
            life.begin(world, start, every=every)
            assert life.keeper is not None
            assert life.keeper.newest == (start if every else -1)
            life.train(start + 5)
            life.keeper.hand_over(stays=True)
            assert life.keeper.newest == start + 5
    if life.process == 2:
        life.die()
    if world := life.meet(3, [0, 1]):
        life.resume(world, 10)


# --- replicated ------------------------------------------------------------------------------


@scenario
def of_whole_states_the_newest_wins_and_the_rest_are_sent_it(life: Life) -> None:
    if world := life.meet(1, range(4)):
        life.begin(world, 0, replicated=True)
        life.train(4)
        assert life.held() == [], "it costs nothing while it trains"
        assert life.keeper is not None
        if life.process < 2:  # they have taken a step of which the others have not heard
            life.keeper.tear()
            life.update()
            life.keeper.commit(at(5))
    if life.process == 3:
        life.die()
    if world := life.meet(2, [3, 1, 0, 2]):
        trade = Exchange.trade
        with mock.patch.object(Exchange, "trade", autospec=True, side_effect=trade) as traded:
            found = life.resume(world, 5, everything=True)
        assert (found.world, found.whole.holders, found.newest) == (4, ((1, 2),), True)
        _, _, incoming = traded.call_args.args
        assert list(incoming) == {3: [1], 1: [], 0: [], 2: [2]}[life.process], "from whom it came"


@scenario
def a_state_torn_between_two_steps_is_worth_nothing(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        life.begin(world, 0, replicated=True)
        life.train(4)
        assert life.keeper is not None
        if life.process == 0:
            life.keeper.tear()
            life.update()
            assert life.keeper.newest == -1
    if world := life.meet(2, [0, 1]):
        life.resume(world, 4, everything=True)
        life.begin(world, 4, replicated=True)
        assert life.keeper is not None
        life.keeper.tear()
    if world := life.meet(3, [0, 1]):
        assert life.find(world) is None


@scenario
def what_a_forward_changes_is_kept_as_it_was_after_the_step(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        life.begin(world, 0, replicated=True)
        life.train(3)
        life.live["buffer.number"].fill_(math.pi)  # of a step that is never taken
    if world := life.meet(2, [0, 1]):
        life.resume(world, 3, everything=True)


@scenario
def a_world_of_one_is_replicated_whatever_its_engine(life: Life) -> None:
    if world := life.meet(1, [2]):
        life.begin(world, 0)
        life.train(3)
        assert life.held() == []
    if world := life.meet(2, [0, 1, 2]):
        life.resume(world, 3)
        life.begin(world, 3)
        life.train(4)
    if life.process == 2:
        life.die()
    if world := life.meet(3, [1, 0]):
        life.resume(world, 4)


@scenario
def who_leaves_keeps_nothing_of_what_is_replicated(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        life.begin(world, 0, replicated=True)
        life.train(2)
        assert life.keeper is not None
        life.keeper.hand_over(stays=life.process == 1)
        life.leave()
        assert life.held() == ([(1, 2, 0)] if life.process == 1 else [])


@scenario
def what_is_not_replicated_is_not_taken_for_it(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        life.live = make_tensors(1)
        look = life.look(world)
        with pytest.raises(CheckpointError, match=r"is not replicated, .* held by no rank"):
            life.memory.begin(world, look, at(1), replicated=True, every=1)


# --- what is refused -------------------------------------------------------------------------


@scenario
def a_state_with_a_gap_is_not_used(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        life.live = make_tensors(1)
        whole_share = life.look(world)

        def look() -> State:
            state = whole_share()
            state.tensors["param.cube"] = Fragment((2, 3, 5), "float32", ())
            return state

        life.keeper = life.memory.begin(world, look, at(1), replicated=False, every=1)
    if world := life.meet(2, [0, 1]):
        with mock.patch("tidemill.checkpoint.memory.log.warning") as warned:
            assert life.find(world) is None
        assert "param.cube: elements 0 to 29 are held by no rank" in str(warned.call_args)


@scenario
def another_model_is_refused_by_all_naming_the_tensor(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        life.begin(world, 1)
    if world := life.meet(2, [0, 1]):
        found = life.find(world)
        assert found is not None
        other = blank(make_tensors(1))
        if life.process == 1:
            other["param.half"] = torch.zeros(34, dtype=torch.float16)
        with pytest.raises(CheckpointError, match=r"param\.half is float16 \[33\] in the"):
            life.memory.fill(found, whole(other), world)


@scenario
def a_state_that_is_cut_anew_in_the_midst_of_an_attempt_is_refused(life: Life) -> None:
    if world := life.meet(1, [0, 1]):
        keeper: Any = life.begin(world, 1)
        keeper._look = life.look(World(rank=world.rank, size=2, attempt=9))
        with pytest.raises(CheckpointError, match="cut otherwise"):
            keeper.commit(at(2))


class PickledError(Exception):
    """Something was pickled."""


@scenario
def nothing_is_pickled(life: Life) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise PickledError

    def listen(event: str, _: object) -> None:
        if event == "pickle.find_class" and armed:
            raise PickledError

    armed = True
    sys.addaudithook(listen)
    names = ("dump", "dumps", "load", "loads", "Pickler", "Unpickler", "_Pickler", "_Unpickler")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(pickle, name, refuse))
        for name in ("_pickler", "_unpickler"):
            stack.enter_context(mock.patch.object(dist.distributed_c10d, name, refuse))
        if world := life.meet(1, range(3)):
            with pytest.raises(PickledError):
                dist.all_gather_object([None] * world.size, world.rank)
            life.begin(world, 0)
            life.train(2)
            assert life.keeper is not None
            life.keeper.hand_over(stays=life.process < 2)
        if world := life.meet(2, [0, 1, 3]):
            life.resume(world, 2)
    armed = False


# --- what it leaves behind -------------------------------------------------------------------


@scenario
def a_message_is_no_longer_than_allowed_and_the_pieces_fit(life: Life) -> None:
    sent: list[int] = []
    isend = dist.isend

    def note(tensor: torch.Tensor, *arguments: Any) -> Any:
        sent.append(tensor.numel())
        return isend(tensor, *arguments)

    with (
        mock.patch.object(exchange_module, "MESSAGE", 256),
        mock.patch.object(dist, "isend", note),
    ):
        if world := life.meet(1, range(3)):
            life.begin(world, 0)
            life.train(2)
            assert max(sent) == 256
        if world := life.meet(2, [3, 0, 2]):
            life.resume(world, 2, everything=True)


@scenario
def nothing_refers_to_live_state_once_an_attempt_has_ended(life: Life) -> None:
    for attempt, replicated in ((1, True), (2, False)):
        if world := life.meet(attempt, [0, 1]):
            if attempt > 1:
                life.resume(world, 2)
            keeper = life.begin(world, 2, replicated=replicated)
            keeper.keep()
            keeper.keep()
            traces = [weakref.ref(tensor) for tensor in life.live.values()]
            life.live = {}
            assert [trace for trace in traces if trace() is not None] == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_memory(told: list[dict[str, str]], name: str) -> None:
    problems = [heard[name] for heard in told if heard[name]]
    assert not problems, "\n".join(problems)


def test_one_process_needs_no_process_group() -> None:
    tensors = make_tensors(3)
    memory = Memory()
    keeper = memory.begin(World(), lambda: whole(tensors), at(3), replicated=False, every=1)
    keeper.keep()
    for tensor in tensors.values():
        tensor.zero_()
    world = World(attempt=2)
    found = memory.find(Exchange(world))
    assert found is not None
    state = whole(blank(tensors))
    memory.fill(found, state, world)
    assert same_pieces(state, make_tensors(3)), "it is a copy"
    assert not dist.is_initialized()


def test_a_piece_at_the_end_of_a_tensor_lies_where_it_did() -> None:
    wide = torch.arange(10.0)
    state = State({"param.w": Fragment((10,), "float32", (Piece(0, wide[:4]), Piece(4, wide[4:])))})
    memory = Memory()
    memory.begin(World(), lambda: state, at(1), replicated=True, every=1).keep()
    world = World(attempt=2)
    found = memory.find(Exchange(world))
    assert found is not None
    tail = torch.zeros(3)
    memory.fill(found, State({"param.w": Fragment((10,), "float32", (Piece(7, tail),))}), world)
    assert tail.tolist() == [7, 8, 9]


@pytest.mark.gpu
def test_what_is_on_a_gpu_is_kept_on_the_host_and_filled_again() -> None:
    tensors = {name: tensor.cuda() for name, tensor in make_tensors(3).items()}
    memory = Memory()
    world = World(device="cuda")
    keeper = memory.begin(world, lambda: whole(tensors), at(3), replicated=True, every=1)
    keeper.keep()
    assert {slab.content.device.type for slab in memory._slabs.held.values()} == {"cpu"}
    again = World(device="cuda", attempt=2)
    found = memory.find(Exchange(again))
    assert found is not None
    empty = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    memory.fill(found, whole(empty), again)
    filled = {name: tensor.cpu() for name, tensor in empty.items()}
    assert same_pieces(whole(filled), make_tensors(3))


# --- engines ---------------------------------------------------------------------------------


CASES = [(strategy, kind) for strategy in STRATEGIES for kind in ("fp32", "bf16", "fp16")]


def _run(strategy: str, kind: str) -> RunSpec:
    precision = PrecisionSpec(kind=PrecisionKind(kind))  # in fp16, the loss scale is a dynamic one
    return tiny_run(strategy, precision=precision)


def _engine(world: World, strategy: str, kind: str) -> tuple[Engine, RunSpec]:
    run = _run(strategy, kind)
    model = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=world.size)
    return build_engine(run, model, world), run


def _elements(name: str, fragment: Fragment) -> torch.Tensor:
    """The content of a logical tensor, random and no number of low precision."""
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(fragment.numel, generator=draw, dtype=torch.float32)


def _scalars(kind: str) -> dict[str, Any]:
    scale = {"value": 512.0, "good_steps": 3} if kind == "fp16" else {"value": 1.0, "good_steps": 0}
    return {"taken_steps": 11, "loss_scale": scale, "guard": {"skipped": 5, "in_a_row": 1}}


def _hold(world: World) -> dict[tuple[str, str], Any]:
    """Give each engine a state, have it in memory, and end it."""
    held: dict[tuple[str, str], Any] = {}
    for strategy, kind in CASES:
        engine, run = _engine(world, strategy, kind)
        filled = engine.wanted()
        for name, fragment in filled.tensors.items():
            for piece in fragment.pieces:
                count = piece.data.numel()
                piece.data.copy_(_elements(name, fragment)[piece.start :][:count])
        filled.scalars.update(_scalars(kind))
        engine.restore(filled)
        guard = Guard(run.precision, engine)
        guard.restore(_scalars(kind)["guard"])
        replicated = isinstance(run.strategy, DdpSpec)

        def look(engine: Engine = engine, guard: Guard = guard) -> State:
            live = look_at(engine, guard)
            return State(engine.wanted().tensors, live.scalars) if replicated else live  # noqa: B023

        memory = Memory()
        memory.begin(world, look, at(11), replicated=replicated, every=1).keep()
        held[strategy, kind] = memory._slabs
        accessors.end(engine)
    return held


def _go_on(world: World, left: list[dict[tuple[str, str], Any]]) -> dict[tuple[str, str], bool]:
    """Fill each engine, at another world and from other weights, with what is held."""
    same: dict[tuple[str, str], bool] = {}
    again = World(rank=world.rank, size=world.size, attempt=2)
    for strategy, kind in CASES:
        engine, _ = _engine(world, strategy, kind)
        memory = Memory()
        memory._slabs = left[world.rank][strategy, kind]
        exchange = Exchange(again, PATIENCE)
        found = memory.find(exchange)
        assert found is not None
        wanted = engine.wanted()
        memory.fill(found, wanted, again)
        engine.restore(wanted)
        assert wanted.scalars["guard"] == {"skipped": 5, "in_a_row": 1}
        scalars = {key: value for key, value in _scalars(kind).items() if key != "guard"}
        read = accessors.masters_and_moments(engine)
        same[strategy, kind] = engine.state().scalars == scalars and all(
            torch.equal(read[name].view(-1), _elements(name, fragment))
            for name, fragment in wanted.tensors.items()
        )
        exchange.close()
        accessors.end(engine)
    return same


def test_every_engine_goes_on_bit_for_bit_at_another_size() -> None:
    left = run_world(_hold, 3)[:2]
    assert run_world(_go_on, 2, left) == [dict.fromkeys(CASES, True)] * 2
