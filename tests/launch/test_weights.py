"""Text and weights come from the newest checkpoint that is whole, and from nothing else."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launch.runs import (
    CORPUS,
    SEQUENCE,
    VOCAB,
    flip_a_bit,
    leave_checkpoint,
    leave_run,
    refused,
    table_run,
    table_that_says,
    tear_manifest,
    text_run,
    tree,
)
from tidemill.data import text
from tidemill.errors import CheckpointError, SpecError, StorageError
from tidemill.launch.weights import END_OF_DOCUMENT, export, generate
from tidemill.spec.doors import ExportFormat, ExportSpec, GenerateSpec
from tidemill.spec.run import RunSpec
from tidemill.spec.training import GptSpec
from tidemill.train.generate import sample
from tidemill.train.model import build_model

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def counting(step: int) -> dict[int, dict[int, float]]:
    """Logits that prefer the letter `step` places on, and like the one after it nearly as well."""
    return {
        ord(letter): {
            ord(ALPHABET[(at + step) % 26]): 9.0,
            ord(ALPHABET[(at + step + 1) % 26]): 8.5,
            ord(ALPHABET[(at + step + 2) % 26]): 8.0,
        }
        for at, letter in enumerate(ALPHABET)
    }


def asked(spec: RunSpec, **changes: object) -> GenerateSpec:
    return replace(
        GenerateSpec(run=spec.name, storage=spec.storage, prompt="a", tokens=12, temperature=0.0),
        **changes,
    )


def text_of(spec: RunSpec, **changes: object) -> str:
    return "".join(generate(asked(spec, **changes)))


def says(place: Path, follows: dict[int, dict[int, float]]) -> RunSpec:
    """A run whose checkpoint says `follows`."""
    spec = table_run(place)
    leave_run(spec)
    leave_checkpoint(spec, 5, model=table_that_says(follows))
    return spec


@pytest.fixture
def counter(tmp_path: Path) -> RunSpec:
    """A run that has learned to count letters."""
    return says(tmp_path, counting(1))


# --- sampling --------------------------------------------------------------------------------


def test_the_end_of_a_document_is_the_same_for_all() -> None:
    assert END_OF_DOCUMENT == text.END_OF_DOCUMENT


def test_without_temperature_the_likeliest_letter_is_taken(counter: RunSpec) -> None:
    assert text_of(counter) == "abcdefghijklm"
    assert text_of(counter, tokens=3, seed=99) == "abcd"


def test_a_seed_gives_one_text(counter: RunSpec) -> None:
    texts = [text_of(counter, tokens=60, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert len(texts[0]) == 61


def test_temperature_makes_text_more_varied(tmp_path: Path) -> None:
    rather_a = {ord("a"): 4.0, ord("b"): 0.0}
    spec = says(tmp_path, {ord("a"): rather_a, ord("b"): rather_a})
    count = {
        temperature: text_of(spec, tokens=200, temperature=temperature, top_k=2).count("b")
        for temperature in (0.1, 1.0, 50.0)
    }
    assert count[0.1] == 0
    assert 0 < count[1.0] < count[50.0]


@pytest.mark.parametrize(("top_k", "jumps"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3})])
def test_top_k_letters_are_sampled_among(top_k: int, jumps: set[int], counter: RunSpec) -> None:
    told = text_of(counter, tokens=100, temperature=1.0, top_k=top_k)
    places = [ALPHABET.index(letter) for letter in told]
    assert {(b - a) % 26 for a, b in itertools.pairwise(places)} == jumps


def test_top_k_of_zero_is_all_of_them(counter: RunSpec) -> None:
    all_of_them = text_of(counter, tokens=100, temperature=1.0, top_k=0)
    assert all_of_them == text_of(counter, tokens=100, temperature=1.0, top_k=VOCAB)
    assert all_of_them != text_of(counter, tokens=100, temperature=1.0, top_k=1)


def test_text_ends_with_its_document(tmp_path: Path) -> None:
    spec = says(tmp_path, {**counting(1), ord("d"): {END_OF_DOCUMENT: 9.0}})
    assert text_of(spec, tokens=200) == "abcd"


def test_without_a_prompt_a_document_begins(tmp_path: Path) -> None:
    spec = says(tmp_path, {**counting(1), END_OF_DOCUMENT: {ord("t"): 9.0}})
    assert text_of(spec, prompt="", tokens=4) == "tuvw"


def test_a_prompt_longer_than_the_sequence_is_looked_back_on_from_its_end(counter: RunSpec) -> None:
    prompt = "k" * (3 * SEQUENCE) + "x"
    assert text_of(counter, prompt=prompt, tokens=4) == prompt + "yzab"


def test_letters_of_several_bytes_come_whole(tmp_path: Path) -> None:
    spec = says(tmp_path, {ord("a"): {0xC3: 9.0}, 0xC3: {0xA9: 9.0}, 0xA9: {ord("a"): 9.0}})
    assert list(generate(asked(spec, tokens=5))) == ["a", "", "é", "a", "", "é", ""]
    assert text_of(spec, prompt="é", tokens=1) == "éa"


def test_bytes_that_are_no_text_are_marked(tmp_path: Path) -> None:
    spec = says(tmp_path, {ord("a"): {0xC3: 9.0}, 0xC3: {ord("a"): 9.0}})
    assert text_of(spec, tokens=3) == "a\ufffda\ufffd"


def test_a_prompt_may_hold_bytes_that_are_no_text(tmp_path: Path) -> None:
    spec = says(tmp_path, {0xFF: {ord("z"): 9.0}})
    assert text_of(spec, prompt=os.fsdecode(b"a\xff"), tokens=1) == "a\ufffdz"


def test_text_comes_as_it_is_made(counter: RunSpec) -> None:
    pieces = generate(asked(counter, prompt="abc", tokens=10**9))
    assert list(itertools.islice(pieces, 4)) == ["abc", "d", "e", "f"]


# --- which weights ---------------------------------------------------------------------------


def test_a_gpt_speaks_with_the_weights_of_its_checkpoint(tmp_path: Path) -> None:
    spec = text_run(tmp_path, model=GptSpec(layers=2, heads=2, width=16, dropout=0.5))
    leave_run(spec)
    trained = build_model(spec.model, vocab=VOCAB, sequence=SEQUENCE, seed=spec.seed + 1)
    leave_checkpoint(spec, 5, model=trained)
    tokens = sample(trained, list(b"tide"), sequence=SEQUENCE, temperature=1.0, top_k=0, seed=3)
    expected = itertools.takewhile(lambda token: token != 256, itertools.islice(tokens, 40))
    told = text_of(spec, prompt="tide", tokens=40, temperature=1.0, top_k=0, seed=3)
    assert told == "tide" + bytes(expected).decode(errors="replace")


def test_the_newest_checkpoint_speaks(counter: RunSpec) -> None:
    leave_checkpoint(counter, 12, model=table_that_says(counting(3)))
    leave_checkpoint(counter, 7, model=table_that_says(counting(2)), attempt=2)
    assert text_of(counter, tokens=3) == "adgj"


@pytest.mark.parametrize("damage", [flip_a_bit, tear_manifest])
def test_a_damaged_checkpoint_is_passed_over(
    damage: object, counter: RunSpec, caplog: pytest.LogCaptureFixture
) -> None:
    newest = leave_checkpoint(counter, 7, model=table_that_says(counting(2)))
    assert callable(damage)
    damage(newest)
    assert text_of(counter, tokens=3) == "abcd"
    assert f"passing over {newest.name}: " in caplog.text


def test_without_a_whole_checkpoint_there_is_no_text(counter: RunSpec, tmp_path: Path) -> None:
    flip_a_bit(leave_checkpoint(counter, 5))
    flip_a_bit(leave_checkpoint(counter, 7))
    # The first one was committed by the fixture, and saving it again changed nothing.
    with refused(CheckpointError, tmp_path, "run: no checkpoint is whole", "restore one"):
        generate(asked(counter))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            GptSpec(layers=1, heads=2, width=16),
            "blocks.0.attention_norm.weight has shape (8,) in the checkpoint and (16,) in the",
        ),
        (
            GptSpec(layers=2, heads=2, width=8),
            "blocks.1.attention_norm.weight has shape None in the checkpoint and (8,) in the",
        ),
    ],
)
def test_weights_of_another_model_are_refused(model: GptSpec, told: str, tmp_path: Path) -> None:
    spec = text_run(tmp_path, model=GptSpec(layers=1, heads=2, width=8))
    leave_checkpoint(spec, 5)
    leave_run(replace(spec, model=model))
    with refused(CheckpointError, tmp_path, "model: ", told, "put the model's code back"):
        generate(asked(spec))


# --- runs that cannot speak ------------------------------------------------------------------


def test_tokens_that_are_no_bytes_are_refused(tmp_path: Path) -> None:
    spec = table_run(tmp_path)
    leave_run(spec, replace(CORPUS, byte_level=False))
    leave_checkpoint(spec, 5)
    with refused(SpecError, tmp_path, "run: mill was trained on tokens", "jobs/export.py"):
        generate(asked(spec))


def test_an_unknown_run_is_refused(counter: RunSpec, tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path, "/runs/mull is no run", "check run= and storage="):
        generate(asked(counter, run="mull"))
    with refused(CheckpointError, tmp_path, "/nowhere/mill is no run"):
        generate(asked(counter, storage=str(tmp_path / "nowhere")))
    with refused(CheckpointError, tmp_path, "/runs/mull is no run"):
        export(ExportSpec(run="mull", to=str(tmp_path / "to"), storage=counter.storage))


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    spec = table_run(tmp_path)
    leave_run(spec)
    with refused(CheckpointError, tmp_path, "run: ", "has no checkpoint yet; train it further"):
        generate(asked(spec))


# --- export ----------------------------------------------------------------------------------


def test_the_newest_whole_weights_are_exported(counter: RunSpec, tmp_path: Path) -> None:
    flip_a_bit(leave_checkpoint(counter, 7, model=table_that_says(counting(2))))
    to = tmp_path / "to"
    door = ExportSpec(run="mill", to=str(to), storage=counter.storage, dtype=ExportFormat.bf16)
    assert export(door).path == f"{to}/model.safetensors"
    (weights,) = load_file(to / "model.safetensors").values()
    assert torch.equal(
        weights, table_that_says(counting(1)).get_parameter("logits.weight").bfloat16()
    )
    config = json.loads((to / "config.json").read_text())
    assert (config["step"], config["vocab"], config["dtype"]) == (5, VOCAB, "bfloat16")


def test_an_export_is_replaced_only_if_asked(counter: RunSpec, tmp_path: Path) -> None:
    door = ExportSpec(run="mill", to=str(tmp_path / "to"), storage=counter.storage)
    export(door)
    with refused(StorageError, tmp_path, "exists"):
        export(door)
    before = tree(tmp_path / "to")
    leave_checkpoint(counter, 7, model=table_that_says(counting(2)))
    export(replace(door, overwrite=True))
    assert tree(tmp_path / "to") != before


def test_a_step_is_exported_if_asked(counter: RunSpec, tmp_path: Path) -> None:
    leave_checkpoint(counter, 7, model=table_that_says(counting(2)))
    door = ExportSpec(run="mill", to=str(tmp_path / "to"), storage=counter.storage, step=5)
    export(door)
    (weights,) = load_file(tmp_path / "to" / "model.safetensors").values()
    assert torch.equal(weights, table_that_says(counting(1)).get_parameter("logits.weight"))
    assert json.loads((tmp_path / "to" / "config.json").read_text())["step"] == 5
    with refused(CheckpointError, tmp_path, "step: ", "of step 6; there are those of 5, 7"):
        export(replace(door, step=6, overwrite=True))


def test_no_other_step_stands_in_for_the_one_asked_for(counter: RunSpec, tmp_path: Path) -> None:
    flip_a_bit(leave_checkpoint(counter, 7, model=table_that_says(counting(2))))
    door = ExportSpec(run="mill", to=str(tmp_path / "to"), storage=counter.storage, step=7)
    with pytest.raises(CheckpointError, match="run: no checkpoint is whole"):
        export(door)
    leave_checkpoint(counter, 7, model=table_that_says(counting(3)), attempt=2)
    export(door)
    (weights,) = load_file(tmp_path / "to" / "model.safetensors").values()
    assert torch.equal(weights, table_that_says(counting(3)).get_parameter("logits.weight"))


def test_large_weights_are_exported_in_shards(tmp_path: Path) -> None:
    spec = text_run(tmp_path, model=GptSpec(layers=2, heads=2, width=16))
    leave_run(spec)
    leave_checkpoint(spec, 5)
    door = ExportSpec(run="mill", to=str(tmp_path / "to"), storage=spec.storage, shard_gib=2**-16)
    assert export(door).path == f"{tmp_path}/to/model.safetensors.index.json"
    files = sorted((tmp_path / "to").glob("*.safetensors"))
    assert [path.name for path in files][:1] == [f"model-00001-of-{len(files):05d}.safetensors"]
    model = build_model(spec.model, vocab=VOCAB, sequence=SEQUENCE, seed=spec.seed)
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
