"""Plans: a run, what is known of its data, and the market, joined into one page that is kept."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidemill.cluster.offers import cache_of, told
from tidemill.cluster.rows import choice_row, commands, decision, facts, gpu_row, notes, world_row
from tidemill.errors import DataError, SpecError, StorageError, TidemillError
from tidemill.plan.activations import Footprint
from tidemill.plan.forecast import GIB, Facts, Forecaster, Home, forecast
from tidemill.plan.gpus import find_gpu
from tidemill.plan.offers import Demand
from tidemill.plan.remedies import explain_nothing
from tidemill.plan.speed import measured_efficiency
from tidemill.providers.market import Market, ask_market, shipped_market
from tidemill.providers.rates import rates_of
from tidemill.report.forecast import PlanPage, plan_markdown
from tidemill.spec.placement import Spot
from tidemill.spec.plan import PlanSpec
from tidemill.spec.run import RunSpec
from tidemill.spec.training import CustomModelSpec, SyntheticSpec, TextSpec, TokensSpec

CLOUDS = {"s3": "aws", "gs": "gcp", "gcs": "gcp", "abfs": "azure", "abfss": "azure", "az": "azure"}
"""Whose object storage a URI is in."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What came of planning.

    Attributes:
        page: For people and programs.
        problem: Why there are no machines; None if there are.
    """

    page: PlanPage
    problem: SpecError | None


def make_plan(
    asked: PlanSpec, spec: RunSpec, typed: Sequence[str], environment: Mapping[str, str]
) -> Plan:
    """Plan a run.

    Args:
        asked: How.
        spec: The run.
        typed: Its keys, as they were typed.
        environment: Has the providers' keys.

    Raises:
        SpecError: The model is the user's own and is not to be traced, or cannot be; or a step
            cannot have been measured there.
    """
    said: list[str] = []
    vocab, dataset_gib = _look_at_data(spec, asked, said)
    footprint = _footprint(spec, asked, vocab)
    known = Facts(
        vocab=vocab,
        dataset_gib=dataset_gib,
        home=_home(spec.storage),
        footprint=footprint,
        efficiency=asked.efficiency or _measured(asked, spec, vocab, footprint),
        now_s=time.time(),
    )
    forecaster = Forecaster(spec, known)
    market = _market(asked, spec, environment)
    found = forecast(forecaster, market.offers)
    choices = found.placement.choices
    page = PlanPage(
        name=spec.name,
        facts=dict(facts(forecaster)),
        worlds=tuple(world_row(forecaster, world) for world in forecaster.worlds),
        gpus=tuple(gpu_row(forecaster, gpu) for gpu in found.gpus),
        choices=tuple(choice_row(forecaster, choices, c) for c in choices[: asked.top]),
        more=len(choices[asked.top :]),
        decision=decision(forecaster, choices),
        refused=told(found.refused),
        skipped=told(market.refusals),
        notes=(*said, *notes(forecaster, found, market)),
        commands=tuple(commands(forecaster, choices[0], typed)) if choices else (),
    )
    return Plan(page, None if choices else explain_nothing(forecaster, market.offers))


def keep(page: PlanPage, to: str) -> list[Path]:
    """Keep a plan as Markdown and JSON; returns where.

    Raises:
        SpecError: It cannot be written there.
    """
    place = Path(to)
    texts = {
        f"{page.name}.md": plan_markdown(page),
        f"{page.name}.json": json.dumps(dataclasses.asdict(page), indent=2) + "\n",
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"{to} cannot be written ({error.strerror})"
        raise SpecError("to", problem, 'name another directory, or to="" for none') from error
    return [place / name for name in texts]


def _market(asked: PlanSpec, spec: RunSpec, environment: Mapping[str, str]) -> Market:
    chosen = spec.placement
    demand = Demand(
        gpus=tuple(chosen.gpus),
        spot={Spot.only: True, Spot.never: False}.get(chosen.spot),
        disk_gib=chosen.disk_gib,
    )
    if not asked.live:
        return shipped_market(demand, chosen.providers)
    cache = cache_of(environment)
    return ask_market(demand, environment, wanted=chosen.providers, cache=cache)


def _look_at_data(spec: RunSpec, asked: PlanSpec, said: list[str]) -> tuple[int, float]:
    """Vocabulary and GiB of the dataset, without reading it."""
    match spec.data:
        case SyntheticSpec(vocab=vocab):
            return vocab, asked.data_gib
        case TokensSpec(vocab=vocab, paths=paths):
            pattern = "*.parquet"
        case TextSpec(paths=paths):
            from tidemill.data.text import VOCAB

            vocab, pattern = VOCAB, "*"
        case other:
            raise SpecError("data", f"nobody knows the tokens of {other}", "use another data=")
    if asked.data_gib or not paths:
        return vocab, asked.data_gib
    if any("://" in path for path in paths):
        said.append("the dataset is not looked at where it is: say how large with data_gib=")
        return vocab, 0.0
    from tidemill.data.sources import find_files

    try:
        size = sum(file.size for file in find_files(paths, (), pattern))
    except (DataError, StorageError) as error:
        said.append(f"the dataset counts as nothing, for {error}; say how large with data_gib=")
        return vocab, 0.0
    said.append("the dataset is on this machine; machines elsewhere need it under a URI")
    return vocab, size / GIB


def _footprint(spec: RunSpec, asked: PlanSpec, vocab: int) -> Footprint | None:
    if not asked.trace:
        if isinstance(spec.model, CustomModelSpec):
            raise SpecError(
                "model", "is your own, so its memory has to be traced", "add trace=true"
            )
        return None
    from tidemill.train.footprint import trace_footprint

    return trace_footprint(spec, vocab)


def _measured(asked: PlanSpec, spec: RunSpec, vocab: int, footprint: Footprint | None) -> float:
    """Share of the peak that a measured step shows; 0 if none was."""
    if not asked.measured_s:
        return 0.0
    name, _, gpus = asked.measured_on.partition(":")
    gpu, world = find_gpu(name), int(gpus or 1)
    if gpu is None:
        raise SpecError("measured_on", f"there is no GPU {name}", "use a name as the plan shows it")
    try:
        return measured_efficiency(
            spec,
            asked.measured_s,
            gpu=gpu,
            world=world,
            per_machine=world,
            network=None,
            vocab=vocab,
            parameters=footprint.parameters if footprint else None,
        )
    except SpecError:
        raise
    except TidemillError as error:
        remedy = "say what it was measured on, with the same batch and precision"
        raise SpecError("measured_s", str(error), remedy) from error


def _home(storage: str) -> Home:
    """Whose storage a run has; a disk or somebody else's is nobody's who rents out machines."""
    provider = CLOUDS.get(storage.partition("://")[0], "") if "://" in storage else ""
    if not provider:
        return Home()
    rates = rates_of(provider)
    return Home(
        provider=provider,
        egress_usd_per_gib=rates.egress_usd_per_gib,
        usd_per_gib_month=rates.object_usd_per_gib_month or 0.0,
    )
