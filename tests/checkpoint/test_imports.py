"""Weights from elsewhere: exact where types agree, cast where not, and refused unless they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.checkpoint.states import blank, make_store, make_tensors, same_pieces, split, whole
from tests.kit.training import SEQUENCE, VOCAB, RaggedStream, tiny_run
from tests.kit.world import run_world
from tidemill.checkpoint import imports
from tidemill.checkpoint.export import export_safetensors
from tidemill.checkpoint.imports import fill_from_safetensors, tied_names
from tidemill.checkpoint.manifest import committed
from tidemill.errors import CheckpointError
from tidemill.plan.batch import Slot
from tidemill.spec.progress import Cursor, State, World
from tidemill.storage import Location, locate
from tidemill.train.engine import Batch, LossModel, build_engine
from tidemill.train.engine import whole as all_of
from tidemill.train.model import build_model


def model_state(tensors: dict[str, torch.Tensor]) -> State:
    """A state of fp32 parameters, each with a moment, as live views of `tensors`."""
    named = {f"param.{name}": tensor for name, tensor in tensors.items()}
    moments = {f"exp_avg.{name}": torch.ones_like(tensor) for name, tensor in tensors.items()}
    return whole(named | moments)


def draw(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def left_at(place: Path, tensors: dict[str, torch.Tensor]) -> Location:
    save_file(tensors, place / "model.safetensors")
    return locate(str(place))


def refuse(state: State, source: Location, *told: str, tied: dict[str, str] | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        fill_from_safetensors(state, source, tied)
    assert type(caught.value) is CheckpointError
    assert str(caught.value).startswith(f"checkpoint.init_from: {source}")
    assert "\n" not in str(caught.value)
    for part in told:
        assert part in str(caught.value)


# --- what is filled --------------------------------------------------------------------------


def test_weights_are_filled_and_moments_left_alone(tmp_path: Path) -> None:
    stored = draw(a=(5, 3), b=(7,), s=(), none=(0, 2))
    live = blank(stored)
    state = model_state(live)
    fill_from_safetensors(state, left_at(tmp_path, stored))
    assert all(torch.equal(live[name], stored[name]) for name in stored)
    moments = [f for name, f in state.tensors.items() if name.startswith("exp_avg.")]
    assert all(bool((piece.data == 1).all()) for f in moments for piece in f.pieces)
    assert state.scalars == {}


@pytest.mark.parametrize("batch", [16, 2**26])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_formats_are_cast(
    dtype: torch.dtype, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH", batch)
    stored = {name: tensor.to(dtype) for name, tensor in draw(a=(5, 3), b=(7,), s=()).items()}
    live = {name: torch.zeros(tensor.shape) for name, tensor in stored.items()}
    fill_from_safetensors(model_state(live), left_at(tmp_path, stored))
    assert all(torch.equal(live[name], stored[name].float()) for name in stored)


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rank_is_filled_with_its_ranges_of_an_export_in_shards(
    dtype: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH", 64)
    store = make_store(World(), str(tmp_path))
    store.save(whole(make_tensors(1)), Cursor(), {})
    store.finish()
    store.close()
    (place,) = committed(locate(str(tmp_path)))
    to = locate(str(tmp_path)) / "out"
    export_safetensors(place, to, vocab=1, dtype=dtype, shard_gib=2**-21)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1

    target: Any = getattr(torch, dtype)
    kept = {n: t for n, t in make_tensors(1).items() if not n.startswith("exp_avg")}
    live = blank(kept)
    mine = split(live, rank, 3, "cuts")
    fill_from_safetensors(mine, to)
    expected = {
        name: tensor.to(target).to(tensor.dtype)
        if name.startswith("param.") and tensor.is_floating_point()
        else tensor
        for name, tensor in kept.items()
    }
    assert same_pieces(mine, expected)
    others = split(live, (rank + 1) % 3, 3, "cuts")
    touched = [piece.data for f in others.tensors.values() for piece in f.pieces]
    assert not any(bool(data.any()) for data in touched)


# --- ties ------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two names for one weight, and for one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        count = torch.zeros(2)
        self.register_buffer("first", count)
        self.register_buffer("second", count)


def test_ties_are_found() -> None:
    assert tied_names(Tied()) == {"head.weight": "embed.weight", "second": "first"}
    assert tied_names(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize(
    "names",
    [
        ("embed.weight", "first"),
        ("head.weight", "second"),
        ("embed.weight", "head.weight", "first", "second"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_weight_comes_under_any_of_its_names(
    names: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    values = draw(weight=(6, 4), buffer=(2,))
    stored = {
        name: values["weight" if "weight" in name else "buffer"].to(dtype, copy=True)
        for name in names
    }
    live = {"param.embed.weight": torch.zeros(6, 4), "buffer.first": torch.zeros(2)}
    source = left_at(tmp_path, stored)
    fill_from_safetensors(whole(live), source, tied_names(Tied()))
    assert torch.equal(live["param.embed.weight"], values["weight"].to(dtype).float())
    assert torch.equal(live["buffer.first"], values["buffer"].to(dtype).float())
    if len(names) == 4:
        refuse(whole(live), source, "head.weight, second are unknown to the model")


def test_unequal_weights_are_not_tied(tmp_path: Path) -> None:
    stored = draw(**{"embed.weight": (6, 4), "head.weight": (6, 4)})
    live = whole({"param.embed.weight": torch.zeros(6, 4)})
    tied = {"head.weight": "embed.weight"}
    source = left_at(tmp_path, stored)
    refuse(live, source, "embed.weight", "several names with different values", tied=tied)


# --- what does not fit -----------------------------------------------------------------------


def test_names_that_do_not_fit_are_told(tmp_path: Path) -> None:
    source = left_at(tmp_path, draw(**{f"theirs.{at}": (1,) for at in range(9)}, both=(2,)))
    live = model_state(draw(**{f"ours.{at}": (1,) for at in range(5)}, both=(2,)))
    refuse(
        live,
        source,
        "does not fit: ours.0, ours.1, ours.2 and 2 more are missing; "
        "theirs.0, theirs.1, theirs.2 and 6 more are unknown to the model",
    )
    refuse(
        model_state(draw(mine=(1,))),
        left_at(tmp_path, draw(yours=(1,))),
        "mine is missing; yours is unknown to the model",
    )


def test_shapes_that_do_not_fit_are_told(tmp_path: Path) -> None:
    source = left_at(tmp_path, draw(a=(2, 3), b=(4,)))
    told = "a is float32 [2, 3] there and float32 [3, 2] in the model"
    refuse(model_state(draw(a=(3, 2), b=(4,))), source, told)
    refuse(model_state(draw(a=(6,), b=(4,))), source, "[2, 3] there and float32 [6] in")


@pytest.mark.parametrize(
    ("stored", "live"),
    [
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_counts_are_never_cast(stored: torch.Tensor, live: torch.Tensor, tmp_path: Path) -> None:
    refuse(whole({"buffer.n": live}), left_at(tmp_path, {"n": stored}), "n is ", "[3] there and")


def test_nothing_is_filled_unless_all_of_it_fits(tmp_path: Path) -> None:
    live = draw(a=(2,), b=(2,))
    before = {name: tensor.clone() for name, tensor in live.items()}
    refuse(model_state(live), left_at(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(3)}), "b is")
    assert all(torch.equal(live[name], before[name]) for name in live)


def test_a_file_that_shrinks_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = draw(a=(100,))
    source = left_at(tmp_path, stored)
    weights = imports.read_weights(source)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    monkeypatch.setattr(imports, "read_weights", lambda _: weights)
    refuse(model_state(blank(stored)), source, "model.safetensors ends before byte")
    (tmp_path / "model.safetensors").unlink()
    refuse(model_state(blank(stored)), source, "there is no such file")


# --- engines ---------------------------------------------------------------------------------


def gathered(state: State, kind: str) -> dict[str, list[tuple[int, torch.Tensor]]]:
    """This rank's pieces of the tensors of one kind, as copies."""
    return {
        name: [(piece.start, piece.data.clone()) for piece in fragment.pieces]
        for name, fragment in state.tensors.items()
        if name.startswith(kind)
    }


def _start(world: World, strategy: str, source: str) -> tuple[Any, Any, float]:
    """Start an engine from weights; its masters, its moments, and the loss of one batch."""
    run = tiny_run(strategy)
    model = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=99)
    tied = tied_names(model)
    engine = build_engine(run, model, world)
    wanted = engine.wanted()
    fill_from_safetensors(wanted, locate(source), tied)
    wanted.scalars["taken_steps"] = 0
    engine.restore(wanted)
    state = engine.state()
    assert state.scalars["taken_steps"] == 0
    loss = float(engine.evaluate(_batch()))
    return gathered(state, "param."), gathered(state, "exp_avg."), loss


def _batch() -> Batch:
    samples = RaggedStream().take(0, Slot(start=0, size=4))
    return Batch(
        torch.from_numpy(samples.inputs),
        torch.from_numpy(samples.targets),
        torch.from_numpy(samples.keys),
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_z3"])
def test_every_engine_starts_from_an_export_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    run = tiny_run()
    model = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=run.seed)
    expected = {f"param.{name}": tensor.detach() for name, tensor in model.named_parameters()}
    store = make_store(World(), str(tmp_path / "run"))
    store.save(State({name: all_of(tensor) for name, tensor in expected.items()}), Cursor(), {})
    store.finish()
    store.close()
    (place,) = committed(locate(str(tmp_path / "run")))
    export_safetensors(place, locate(str(tmp_path)) / "out", vocab=VOCAB, shard_gib=2**-14)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1

    ranks = run_world(_start, 2, strategy, str(tmp_path / "out"))
    for name, tensor in expected.items():
        flat = torch.full((tensor.numel(),), torch.nan)
        for masters, _, _ in ranks:
            for start, data in masters[name]:
                flat[start : start + data.numel()] = data
        assert torch.equal(flat.view(tensor.shape), tensor)
    moments = [data for _, held, _ in ranks for pieces in held.values() for _, data in pieces]
    assert moments
    assert not any(bool(data.any()) for data in moments)
    batch = _batch()
    with torch.no_grad():
        plain = LossModel(model.eval())(batch.inputs_BS, batch.targets_BS, batch.keys_B)
    for _, _, loss in ranks:
        assert loss == pytest.approx(float(plain), rel=1e-6)


def test_the_library_loads_an_export_into_a_module(tmp_path: Path) -> None:
    """What `_start` relies on, shown without a line of ours: names and values are the module's."""
    run = tiny_run()
    model = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=run.seed)
    store = make_store(World(), str(tmp_path / "run"))
    state = State({f"param.{n}": all_of(p.detach()) for n, p in model.named_parameters()})
    store.save(state, Cursor(), {})
    store.finish()
    store.close()
    (place,) = committed(locate(str(tmp_path / "run")))
    weights = export_safetensors(place, locate(str(tmp_path)) / "out", vocab=VOCAB)
    other = build_model(run.model, vocab=VOCAB, sequence=SEQUENCE, seed=99)
    other.load_state_dict(load_file(weights.path), strict=True)
    mine, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
