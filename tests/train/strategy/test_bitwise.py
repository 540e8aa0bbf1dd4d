"""The same bits in every world, and through any history of worlds; plain DDP is the control.

Each world is started once. All train a run with clipping, dropout and ragged targets, and some also
one in fp16 whose gradients overflow on one rank; one with frozen and tied weights and with buffers;
one with torch's own dropout, buffers that follow the data and weights that some slots do not use.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kit import accessors
from tests.kit.checkpoints import load_here, save_here
from tests.kit.mixed import mixed
from tests.kit.training import (
    SEQUENCE,
    VOCAB,
    Memory,
    NoKeeper,
    NoStore,
    RaggedStream,
    in_precision,
    plain_losses,
    tiny_run,
)
from tests.kit.world import run_world
from tidemill.plan.batch import Slot
from tidemill.spec.progress import Cursor, EventKind, World
from tidemill.spec.run import ReportSpec, Reproducibility, RunSpec
from tidemill.spec.training import BatchSpec, CustomModelSpec, PrecisionKind, PrecisionSpec
from tidemill.train.engine import Batch, Engine, build_engine
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, to_device, train
from tidemill.train.model import build_model
from tidemill.train.pulse import Pulse
from tidemill.train.strategy.bitwise import BitwiseEngine, pin_kernels

WORLDS = [1, 2, 3, 4, 5, 7]
ODD_WORLDS = [1, 3, 7]
"""Those that train every kind of run."""
HISTORY = [2, 4, 3, 1, 4]
BATCH = BatchSpec(global_size=11, micro_size=2, sequence=SEQUENCE)
"""Six slots, one of them smaller: not for every rank of seven, and unevenly for five and four."""
BITWISE: dict[str, Any] = {
    "batch": BATCH,
    "reproducibility": Reproducibility.bitwise,
    "report": ReportSpec(eval_every_steps=5, eval_samples=13),
}
OVERFLOW_SLOT, OVERFLOW_STEP = 3, 1
SHORT = 5
OTHER_SEED = 99


class Fickle(nn.Module):
    """Has torch's dropout, a buffer that follows the data, and two heads, of which it uses one."""

    seen: Tensor

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, 8)
        self.drop = nn.Dropout(0.3)
        self.even, self.odd = nn.Linear(8, vocab), nn.Linear(8, vocab)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, inputs_BS: Tensor) -> Tensor:
        x_BSD = self.drop(self.embed(inputs_BS)) - self.seen
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x_BSD.detach().mean((0, 1))
        return self.even(x_BSD) if int(inputs_BS[0, 0]) % 2 == 0 else self.odd(x_BSD)


def make_fickle(*, vocab: int, sequence: int) -> Fickle:
    """What `RUNS` name as a factory."""
    return Fickle(vocab)


RUNS = {
    "usual": tiny_run(steps=10, **BITWISE),
    "control": tiny_run(steps=SHORT, batch=BATCH, report=BITWISE["report"]),
    "overflow": tiny_run(
        steps=SHORT,
        precision=PrecisionSpec(kind=PrecisionKind.fp16, initial_scale_power=9),
        **BITWISE,
    ),
    "mixed": tiny_run(steps=SHORT, model=mixed(), precision=in_precision("bf16"), **BITWISE),
    "fickle": tiny_run(
        steps=SHORT,
        model=CustomModelSpec(factory="tests.train.strategy.test_bitwise:make_fickle"),
        **BITWISE,
    ),
}
Curve = list[tuple[float, ...]]
Trained = tuple[Curve, dict[str, Tensor]]


def _engine(run: RunSpec, world: World, seed: int) -> Engine:
    model: Any = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=seed)
    model.seed = run.seed
    return build_engine(run, model, world)


def _train(world: World, run: RunSpec, engine: Engine, cursor: Cursor) -> Curve:
    """Losses, norms and whether each step was applied; then the validation losses."""
    memory = Memory()
    parts = Parts(
        engine=engine,
        guard=Guard(run.precision, engine),
        stream=RaggedStream(),
        held_out=RaggedStream(),
        byte_level=False,
        store=NoStore(),
        keeper=NoKeeper(),
        pulse=Pulse(),
        recorder=memory,
        stop_requested=lambda: False,
        save_requested=lambda: False,
        leave_requested=lambda: False,
    )
    train(run, parts, world, cursor)
    steps, evaluated = memory.all(EventKind.step), memory.all(EventKind.evaluated)
    curve: Curve = [(step["loss"], step["grad_norm"], step["applied"]) for step in steps]
    return curve + [(said["loss"],) for said in evaluated]


def _overflow(engine: BitwiseEngine) -> None:
    """Make one slot of one step give an infinity, on the rank that has it."""
    take, steps = engine.gradients.take, [0] * RUNS["overflow"].batch.global_size

    def taken(slot: int) -> None:
        if slot == OVERFLOW_SLOT and steps[slot] == OVERFLOW_STEP:
            gradient = engine.gradients._parameters[0].grad
            assert gradient is not None
            gradient[0, 0] = torch.inf
        steps[slot] += 1
        take(slot)

    engine.gradients.take = taken  # type: ignore[method-assign]


def _all(world: World) -> dict[str, Trained]:
    """The runs of this world, with all that the engine holds in the end."""
    found: dict[str, Trained] = {}
    names = RUNS if world.size in ODD_WORLDS else ("usual", "control")
    for name in names:
        run = RUNS[name]
        engine = _engine(run, world, run.seed)
        if name == "overflow":
            assert isinstance(engine, BitwiseEngine)
            _overflow(engine)
        curve = _train(world, run, engine, Cursor())
        found[name] = curve, accessors.everything(engine)
    if world.size == 1:
        found["plain"] = [(loss,) for loss in plain_losses(RUNS["usual"])], {}
    return found


@pytest.fixture(scope="module")
def trained() -> dict[int, list[dict[str, Trained]]]:
    """By world and rank."""
    return {size: run_world(_all, size) for size in WORLDS}


def _equal(ours: Trained, theirs: Trained) -> bool:
    assert ours[1].keys() == theirs[1].keys()
    same = all(torch.equal(tensor, theirs[1][name]) for name, tensor in ours[1].items())
    return same and str(ours[0]) == str(theirs[0])  # as text, because NaN is not NaN


@pytest.mark.parametrize("name", [name for name in RUNS if name != "control"])
def test_every_rank_of_every_world_has_the_same_bits(
    name: str, trained: dict[int, list[dict[str, Trained]]]
) -> None:
    alone = trained[1][0][name]
    assert len(alone[0]) == RUNS[name].steps + RUNS[name].steps // 5
    for size in WORLDS if name == "usual" else ODD_WORLDS:
        for rank in trained[size]:
            assert _equal(rank[name], alone), size


def test_plain_ddp_has_other_bits(trained: dict[int, list[dict[str, Trained]]]) -> None:
    alone = trained[1][0]["control"]
    assert {size for size in WORLDS if not _equal(trained[size][0]["control"], alone)} >= {3, 5, 7}


def test_the_curve_is_that_of_a_plain_loop(trained: dict[int, list[dict[str, Trained]]]) -> None:
    plain = [said[0] for said in trained[1][0]["plain"][0]]
    losses = [said[0] for said in trained[7][0]["usual"][0][: len(plain)]]
    assert len(losses) == RUNS["usual"].steps
    assert losses == pytest.approx(plain, abs=2e-6)


def test_an_overflow_on_one_rank_skips_the_step_on_all(
    trained: dict[int, list[dict[str, Trained]]],
) -> None:
    for size in ODD_WORLDS:
        curve, held = trained[size][0]["overflow"]
        applied = [said[2] for said in curve[:SHORT]]
        assert applied == [step != OVERFLOW_STEP for step in range(SHORT)]
        assert held["scalar.loss_scale"] == 2.0**8


def test_buffers_are_what_the_last_slot_leaves(
    trained: dict[int, list[dict[str, Trained]]],
) -> None:
    assert trained[7][0]["mixed"][1]["buffer.calls"] == SHORT  # once a step, however many slots


def _leg(world: World, place: str, until: int) -> dict[str, Trained]:
    """Go on with two of the runs until step `until`, from where the last world left them."""
    found: dict[str, Trained] = {}
    for name in ("usual", "mixed"):
        run = RUNS[name]
        engine = _engine(run, world, OTHER_SEED if until > 1 else run.seed)
        restored = load_here(world, run, engine, f"{place}/{name}")
        cursor = restored.cursor if restored else Cursor()
        curve = _train(world, replace(run, steps=until), engine, cursor)
        save_here(world, run, engine, f"{place}/{name}", Cursor(step=until, samples=11 * until))
        found[name] = curve[:1], accessors.everything(engine)
    return found


def test_a_history_of_worlds_leaves_no_trace(
    tmp_path: Path, trained: dict[int, list[dict[str, Trained]]]
) -> None:
    curves: dict[str, Curve] = {"usual": [], "mixed": []}
    ended: list[dict[str, Trained]] = []
    for until, size in enumerate(HISTORY, start=1):
        ended = run_world(_leg, size, str(tmp_path), until)
        for name, curve in curves.items():
            curve.extend(ended[0][name][0])
    for name, curve in curves.items():
        assert curve == trained[3][0][name][0][: len(HISTORY)]
    undisturbed = trained[3][0]["mixed"]  # it is as long as the history
    assert all(_equal((undisturbed[0], rank["mixed"][1]), undisturbed) for rank in ended)


def _between_slots(world: World) -> tuple[list[float], list[float], int]:
    """Buffers before and after the last slot and after the step; and the number of threads."""
    torch.set_num_threads(2)
    run = RUNS["mixed"]
    engine = _engine(run, world, run.seed)
    assert isinstance(engine, BitwiseEngine)
    calls: list[float] = []
    warmth: list[float] = []
    for slot in (*engine.plan.slots(world.rank), None):
        if slot is not None:
            last = slot == engine.plan.slots(world.rank)[-1]
            engine.accumulate(_batch(slot, world), 1.0, last=last)
        else:
            engine.step(1e-3)
        calls.append(float(accessors.buffers(engine)["buffer.calls"]))
        warmth.append(float(accessors.buffers(engine)["buffer.warmth"]))
    return calls, warmth, torch.get_num_threads()


def _batch(slot: Slot, world: World) -> Batch:
    return to_device(RaggedStream().take(0, slot), world)


def test_until_the_step_is_taken_the_state_is_that_before_it() -> None:
    for calls, warmth, threads in run_world(_between_slots, 2):
        assert calls == [0, 0, 0, 1]
        assert warmth == pytest.approx([1.1, 1.1, 1.1, 1.1 * 0.875])
        assert threads == 1


def _pinned(_: World) -> bool:
    pin_kernels(torch.device("cuda", 0))
    return torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark


def test_a_gpu_uses_deterministic_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_world(_pinned, 1) == [True]
