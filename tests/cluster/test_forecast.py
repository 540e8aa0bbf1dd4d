"""A plan joins the run, its data and the market, and needs none of them to be at hand."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.offers import make_offer
from tests.plan.test_forecast import FACTS, SPEC
from tidemill.cluster.forecast import Plan, _home, keep, make_plan
from tidemill.cluster.rows import commands
from tidemill.compose import compose
from tidemill.errors import SpecError
from tidemill.plan.forecast import Forecaster, forecast
from tidemill.plan.offers import Offer
from tidemill.providers.rates import rates_of
from tidemill.spec.plan import PlanSpec
from tidemill.spec.run import RunSpec

MODEL = """
import torch

class Own(torch.nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, 64)
        self.head = torch.nn.Linear(64, vocab)

    def forward(self, inputs_BS):
        return self.head(torch.tanh(self.embed(inputs_BS)))

def make(vocab, sequence):
    return Own(vocab)
"""


def plan(*typed: str, **asked: Any) -> Plan:
    run = compose(typed, config_name="config", schema=RunSpec)
    return make_plan(PlanSpec(**{"live": False, "to": ""} | asked), run, typed, {})


def notes(made: Plan) -> str:
    return "\n".join(made.page.notes)


def test_without_a_key_the_catalogue_answers_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_URL")) and not name.startswith("GPUHUNT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TIDEMILL_AZURE_URL", "http://127.0.0.1:9")
    made = plan(live=True)
    assert made.problem is None
    assert made.page.choices
    assert "from the catalogue that Tidemill brings" in notes(made)
    skipped = {row.subject: row for row in made.page.skipped}
    assert len(skipped) >= 9
    assert skipped["vast"].remedy.startswith("export VAST_API_KEY")


def test_every_size_has_its_batch_and_memory() -> None:
    made = plan("scale.workers=5", "scale.min_workers=2", "model=gpt_124m", "data=synthetic")
    assert [row.workers for row in made.page.worlds] == [2, 3, 4, 5]
    for row in made.page.worlds:
        assert sum(row.need_terms_gib.values()) == pytest.approx(row.need_gib)
        assert row.samples * row.workers >= 64
        assert row.micro_batches * row.micro_size >= row.samples


def test_the_bill_adds_up_to_the_cent() -> None:
    for choice in plan("scale.workers=8", "model=gpt_1b", top=50).page.choices:
        assert sum(round(100 * usd) for usd in choice.terms_usd.values()) == round(100 * choice.usd)


@pytest.mark.parametrize(
    ("storage", "leaves"), [("s3://bucket/runs", "aws"), ("gs://bucket/runs", "gcp"), ("runs", "")]
)
def test_checkpoints_leave_those_who_do_not_keep_them(storage: str, leaves: str) -> None:
    made = plan("model=gpt_1b", "scale.workers=8", f"storage={storage}", top=500)
    for cloud in ("aws", "gcp"):
        paid = [
            row.terms_usd["transfer_out"] > 0
            for row in made.page.choices
            if f" {cloud}:" in row.machines
        ]
        assert paid
        assert not any(paid) if cloud == leaves else all(paid)
    assert ("is on this machine" in notes(made)) is (leaves == "")


@pytest.mark.parametrize(
    ("storage", "provider"),
    [
        ("s3://bucket/runs", "aws"),
        ("gs://bucket/runs", "gcp"),
        ("gcs://bucket/runs", "gcp"),
        ("abfss://box@account.dfs.core.windows.net/runs", "azure"),
        ("az://box/runs", "azure"),
        ("hdfs://name/runs", ""),
        ("file:///runs", ""),
        ("/runs", ""),
        ("s3/runs", ""),
    ],
)
def test_a_uri_says_whose_storage_it_is(storage: str, provider: str) -> None:
    home = _home(storage)
    assert home.provider == provider
    charged = rates_of(provider).egress_usd_per_gib if provider else 0.0
    assert home.egress_usd_per_gib == charged
    assert (home.usd_per_gib_month > 0) is bool(provider)


def test_what_is_fetched_is_as_large_as_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 2**20)
    local = plan(f"data.paths=[{tmp_path}]")
    assert "the dataset is on this machine" in notes(local)
    assert "8 GiB by each machine" in local.page.facts["to fetch"]
    said = plan(f"data.paths=[{tmp_path}]", data_gib=12.0)
    assert "20 GiB by each machine, 8 of them image" in said.page.facts["to fetch"]
    remote = plan("data.paths=[s3://bucket/texts]")
    assert "say how large with data_gib=" in notes(remote)
    missing = plan(f"data.paths=[{tmp_path}/none]")
    assert "counts as nothing" in notes(missing)
    assert missing.problem is None


def test_a_model_of_ones_own_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_model_of_plan.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    typed = ("model=custom", "model.factory=own_model_of_plan:make", "data=synthetic")
    with pytest.raises(SpecError, match=r"model: is your own, .* add trace=true"):
        plan(*typed)
    made = plan(*typed, trace=True)
    assert made.page.facts["model"].startswith("8.26k parameters")
    assert made.page.facts["model"].endswith("traced")
    assert made.page.choices


def test_a_measured_step_is_what_is_planned_with() -> None:
    typed = ("model=gpt_124m", "data=synthetic", "data.vocab=50257", "scale.workers=8")
    made = plan(*typed, measured_s=2.0, measured_on="L4:8")
    (row,) = [row for row in made.page.gpus if row.gpu == "L4"]
    assert row.step_s == pytest.approx(2.0, rel=1e-3)
    assert "of a GPU's peak, within a tenth" in notes(made)
    with pytest.raises(SpecError, match=r"^measured_on: there is no GPU X9"):
        plan(measured_s=2.0, measured_on="X9")
    with pytest.raises(SpecError, match=r"^measured_s: a step of 1e-06 s is faster than L4 can be"):
        plan(*typed, measured_s=1e-6, measured_on="L4:8")


def test_commands_say_what_was_typed_once() -> None:
    typed = ("name=a b", "scale.workers=8", "data.paths=['x y']", "deadline=9h")
    run = compose([*typed[1:], "name=ab"], config_name="config", schema=RunSpec)
    made = make_plan(PlanSpec(live=False, to=""), run, typed, {})
    command = made.page.commands[-1]
    assert command.count("scale.workers=") == 1
    assert command.count("deadline=9h") == 1
    assert "'name=a b'" in command
    assert "scale.gpus_per_worker=1" in command
    assert any("tidemill.io/usd-per-hour=" in line for line in made.page.commands)
    assert made.page.decision.startswith("as of now: ")


def typed_for(offer: Offer, *typed: str, **wanted: Any) -> list[str]:
    """Commands for as many machines as a run of four workers needs."""
    spec = replace(SPEC, **{"scale": replace(SPEC.scale, min_workers=4)} | wanted)
    forecaster = Forecaster(spec, FACTS)
    best = forecast(forecaster, [offer]).placement.best
    assert best is not None
    return list(commands(forecaster, best, typed))


values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["name", "data.paths", "+x"]), unique=True), values)
def test_a_shell_reads_what_was_typed_as_it_was_typed(keys: list[str], value: str) -> None:
    typed = [f"{key}={value}" for key in keys]
    script = "python jobs/train.py"
    _, read = typed_for(make_offer(gpus=4), *typed)[-1].split(script)
    assert shlex.split(read) == [*typed, "scale.workers=4"]


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_what_the_plan_sets_is_not_typed_twice(prefix: str) -> None:
    rates = replace(make_offer().rates, disk_usd_per_gib_month=0.1)
    typed = [f"{prefix}scale.workers=9", f"{prefix}budget.set_aside_usd=7", f"{prefix}seed=1"]
    command = typed_for(make_offer(gpus=4, rates=rates), *typed)[-1]
    assert command.count("scale.workers=") == 1
    assert "scale.workers=4" in command
    assert command.count("set_aside_usd=") == 1
    assert f" {prefix}seed=1 " in command


def test_who_sets_more_aside_keeps_it() -> None:
    budget = replace(SPEC.budget, set_aside_usd=49.0)
    assert "budget.set_aside_usd=49.00" in typed_for(make_offer(gpus=4), budget=budget)[-1]


def test_a_name_with_a_line_break_stays_in_its_comment() -> None:
    strange = make_offer(region="here\nrm -r runs", rates=replace(make_offer().rates, step_s=60.0))
    lines = typed_for(strange)
    assert len(lines) == 4
    assert all("\n" not in line for line in lines)
    head, others = lines[1:3]
    assert head.startswith("ray start --head --labels tidemill.io/usd-per-hour=3,")
    assert head.endswith("tidemill.io/billing-step-s=60  # lambda:box@here rm -r runs")
    assert others.startswith("ray start --address HEAD:6379 ")
    assert "  # 3 machines, lambda:box@here rm -r runs" in others


def test_what_is_impossible_has_a_page_and_a_reason() -> None:
    made = plan("scale.workers=8", "budget.max_total_usd=0.001", "budget.allow_stale_prices=true")
    assert made.problem is not None
    assert made.problem.key == "budget.max_total_usd"
    assert made.page.choices == ()
    assert made.page.commands == ()
    assert made.page.worlds


def test_it_is_kept_for_people_and_programs(tmp_path: Path) -> None:
    page = plan().page
    text, plain = keep(page, str(tmp_path / "deep" / "plans"))
    assert text.read_text().startswith("# Plan of hello\n")
    assert json.loads(plain.read_text())["name"] == "hello"
    (tmp_path / "taken" / "hello.json").mkdir(parents=True)
    with pytest.raises(SpecError, match=r"^to: .*taken cannot be written"):
        keep(page, str(tmp_path / "taken"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"^to: .* cannot be written \(.*\); name another"):
        keep(page, str(tmp_path / "file" / "plans"))
