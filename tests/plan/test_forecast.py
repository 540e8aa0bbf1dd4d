"""A forecast keeps to every filter and every limit, whatever the market has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.offers import make_offer, offers
from tests.spec.test_run import RUN
from tidemill.errors import SpecError
from tidemill.plan.activations import Activations, Footprint
from tidemill.plan.forecast import (
    GIB,
    Facts,
    Forecaster,
    Home,
    checkpoint_bytes,
    forecast,
    network_of,
)
from tidemill.plan.gpus import all_gpus
from tidemill.plan.offers import Offer
from tidemill.plan.placement import Choice
from tidemill.plan.speed import estimate_step
from tidemill.spec.placement import BudgetSpec, Network, PlacementSpec, Spot, Tier
from tidemill.spec.run import RunSpec
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.strategy import DdpSpec, Fsdp2Spec
from tidemill.spec.training import (
    BatchSpec,
    CustomModelSpec,
    GptSpec,
    PrecisionKind,
    PrecisionSpec,
    SgdSpec,
)

NOW_S = 2e9
VOCAB = 50_257
FACTS = Facts(vocab=VOCAB, dataset_gib=20.0, now_s=NOW_S)
SPEC = replace(
    RUN,
    steps=2000,
    model=GptSpec(layers=12, heads=12, width=768),
    strategy=Fsdp2Spec(),
    precision=PrecisionSpec(kind=PrecisionKind.bf16),
    batch=BatchSpec(global_size=512, micro_size=16, sequence=1024),
    scale=ScaleSpec(workers=4, min_workers=1, gpus_per_worker=1),
    checkpoint=replace(RUN.checkpoint, every_steps=100, keep_last=2, keep_best=1),
)


def make_run(**wanted: Any) -> RunSpec:
    return replace(SPEC, **wanted)


DAY_S = 24 * 3600.0
CAPABILITY = {"H100-SXM5-80GB": 9.0, "A100-SXM4-80GB": 8.0, "L4": 8.9, "RTX-4090": 8.9}
market = st.builds(
    lambda offer, gpu, fetched_at: replace(
        offer, gpu=gpu, gpu_mem_gib=80.0 if "80GB" in gpu else 24.0, fetched_at=fetched_at
    ),
    offers,
    st.sampled_from(sorted(CAPABILITY)),
    st.sampled_from([0.0, NOW_S - 31 * DAY_S, NOW_S - 29 * DAY_S]),
)


def rarely(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Mostly as usual: what all filters refuse at once shows nothing of any."""
    return st.sampled_from([usual] * 3 * len(others) + [*others])


placements = st.builds(
    PlacementSpec,
    tier=rarely(Tier.community, Tier.managed, Tier.secure),
    spot=rarely(Spot.prefer, Spot.only, Spot.never),
    providers=rarely([], ["aws"]),
    gpus=rarely([], ["H100", "A100"]),
    consumer=st.booleans(),
    regions=rarely([], ["here"]),
    countries=rarely([], ["us"], ["eu"]),
    network=st.sampled_from(Network),
    min_reliability=rarely(0.0, 0.95),
    min_capability=rarely(0.0, 8.9),
    max_nodes=rarely(0, 1, 2),
)
budgets = st.builds(
    BudgetSpec,
    max_usd_per_hour=rarely(0.0, 3.0, 10.0),
    max_total_usd=rarely(0.0, 1.0, 4.0),
    max_usd_per_gpu_hour=rarely(0.0, 2.0),
    allow_stale_prices=st.booleans(),
)
runs = st.builds(
    lambda placement, budget, tier, deadline, least, most: make_run(
        batch=replace(SPEC.batch, micro_size=most),
        placement=placement,
        budget=budget,
        data=replace(SPEC.data, tier=tier),
        deadline=deadline,
        scale=replace(SPEC.scale, min_workers=least),
    ),
    placements,
    budgets,
    rarely(Tier.community, Tier.managed, Tier.secure),
    rarely("", "2h", "10h"),
    rarely(1, 0),
    rarely(16, 64),
)


def is_allowed(offer: Offer, spec: RunSpec) -> bool:
    """What a person would check by hand, without any of our own tests."""
    chosen, budget = spec.placement, spec.budget
    ranks = list(Tier)
    places = {"us": {"us"}, "eu": {"de"}}
    capped = budget.max_usd_per_hour or budget.max_total_usd or budget.max_usd_per_gpu_hour
    states = offer.reliability is not None
    return (
        ranks.index(offer.tier) >= max(ranks.index(chosen.tier), ranks.index(spec.data.tier))
        and (not chosen.providers or offer.provider in chosen.providers)
        and (not chosen.regions or offer.region in chosen.regions)
        and (not chosen.countries or offer.country in places[chosen.countries[0]])
        and (not chosen.gpus or offer.gpu[:4] in {"H100", "A100"})
        and (chosen.consumer or offer.gpu != "RTX-4090")
        and CAPABILITY[offer.gpu] >= chosen.min_capability
        and offer.available != 0
        and not (offer.spot and chosen.spot is Spot.never)
        and (offer.spot or chosen.spot is not Spot.only)
        and (not states or (offer.reliability or 0) >= chosen.min_reliability)
        and (states or not chosen.min_reliability or offer.tier is not Tier.community)
        and (
            offer.live
            or not capped
            or budget.allow_stale_prices
            or offer.fetched_at >= NOW_S - 30 * DAY_S
        )
        and offer.usd_per_hour / offer.gpus <= (budget.max_usd_per_gpu_hour or 1e9)
    )


def keeps_to(choice: Choice, spec: RunSpec) -> bool:
    budget, counts = spec.budget, [count for _, count in choice.machines]
    rate = sum(offer.usd_per_hour * count for offer, count in choice.machines)
    hours = {"": 1e9, "2h": 2.0, "10h": 10.0}[spec.deadline]
    return (
        rate <= (budget.max_usd_per_hour or 1e9) + 1e-9
        and choice.bill.usd <= (budget.max_total_usd or 1e9) + 1e-5
        and choice.elapsed_h <= hours + 1e-9
        and sum(counts) <= (spec.placement.max_nodes or 1e9)
        and sum(offer.gpus * count for offer, count in choice.machines) == choice.world
        and spec.scale.least <= choice.world <= spec.scale.workers
        and all(count <= (offer.available or 1e9) for offer, count in choice.machines)
        and len({(offer.provider, offer.region) for offer, _ in choice.machines}) == 1
        and (
            sum(counts) == 1
            or all(o.network.rank >= spec.placement.network.rank for o, _ in choice.machines)
        )
    )


@settings(max_examples=400)
@given(st.lists(market, max_size=6, unique_by=lambda offer: offer.id), runs)
def test_nothing_passes_a_filter_or_a_limit(pool: list[Offer], spec: RunSpec) -> None:
    forecaster = Forecaster(spec, FACTS)
    found = forecast(forecaster, pool)
    for choice in found.placement.choices:
        assert all(is_allowed(offer, spec) for offer, _ in choice.machines)
        assert keeps_to(choice, spec)
        need_bytes = forecaster.memory(choice.world).total_bytes
        assert all(need_bytes < offer.gpu_mem_gib * GIB for offer, _ in choice.machines)
        cents = choice.bill.cents()
        assert abs(100 * choice.bill.usd - sum(cents.values())) <= 0.5
        assert all(
            abs(cents[name] - micro / 10_000) < 1 for name, micro in choice.bill.terms.items()
        )
        low, high = forecaster.span(choice)
        assert low <= choice.elapsed_h <= high
    used = {offer.name for choice in found.placement.choices for offer, _ in choice.machines}
    told = {refusal.subject for refusal in found.refused}
    assert used | told == {offer.name for offer in pool}
    assert not used & told
    assert all(refusal.reason for refusal in found.refused)


@settings(max_examples=60)
@given(st.lists(market, max_size=6, unique_by=lambda offer: offer.id), runs)
def test_what_stricter_filters_leave_is_some_of_what_there_was(
    pool: list[Offer], spec: RunSpec
) -> None:
    free = replace(spec, placement=PlacementSpec(network=spec.placement.network))
    strict, loose = (forecast(Forecaster(run, FACTS), pool).placement for run in (spec, free))
    if strict.best is not None:
        assert loose.best is not None
        assert loose.best.bill.total <= strict.best.bill.total + 10  # millionths, rounded


def test_what_does_not_fit_is_in_no_choice() -> None:
    spec = make_run(batch=BatchSpec(global_size=512, micro_size=64, sequence=1024))
    small, large = make_offer(id="a", gpu="L4", gpus=4), make_offer(id="b", gpus=4)
    found = forecast(Forecaster(spec, FACTS), [small, large])
    assert {o.gpu for c in found.placement.choices for o, _ in c.machines} == {"H100-SXM5-80GB"}
    assert [gpu.name for gpu in found.gpus] == ["L4", "H100-SXM5-80GB"], "both are told of"
    assert "does not fit into 24 GiB" in found.refused[0].reason


def test_a_checkpoint_has_twelve_bytes_of_each_weight() -> None:
    forecaster = Forecaster(SPEC, FACTS)
    weights = forecaster.model.parameters
    assert checkpoint_bytes(SPEC, forecaster.model) == 12 * weights
    plain = make_run(optim=SgdSpec(lr=0.1, momentum=0.0, decay_steps=10))
    assert checkpoint_bytes(plain, forecaster.model) == 4 * weights
    haul = forecaster.haul()
    assert haul.checkpoint_gib == 12 * weights / GIB
    assert (haul.saves, haul.kept) == (20, 3)
    assert (haul.dataset_gib, haul.image_gib, haul.disk_gib) == (20.0, 8.0, 50.0)
    never = make_run(checkpoint=replace(SPEC.checkpoint, every_steps=0))
    assert Forecaster(never, FACTS).haul().saves == 1


def test_checkpoints_at_home_leave_for_nothing() -> None:
    home = Home(provider="aws", egress_usd_per_gib=0.09, usd_per_gib_month=0.023)
    haul = Forecaster(SPEC, replace(FACTS, home=home)).haul()
    assert haul.is_at_home(make_offer(provider="aws"))
    assert not haul.is_at_home(make_offer(provider="gcp"))
    assert haul.home_egress_usd_per_gib == 0.09


def test_who_is_alone_loses_more() -> None:
    hours, step_s = 10.0, 10 * 3600 / SPEC.steps
    sharded = Forecaster(SPEC, FACTS)
    assert sharded.recovery(hours, alone=True).redone_s == 50 * step_s
    assert sharded.recovery(hours, alone=False).redone_s == 0.5 * step_s
    replicated = Forecaster(make_run(strategy=DdpSpec()), FACTS)
    assert replicated.recovery(hours, alone=False).redone_s == 0.0
    assert replicated.recovery(hours, alone=True).redone_s == 50 * step_s
    assert not sharded.recovery(hours, alone=False).replaced
    assert sharded.recovery(hours, alone=True).replaced
    fixed = Forecaster(make_run(scale=replace(SPEC.scale, min_workers=0)), FACTS)
    assert fixed.recovery(hours, alone=False).replaced


def test_without_copies_at_a_neighbour_the_last_one_that_was_kept_counts() -> None:
    hours, step_s = 10.0, 10 * 3600 / SPEC.steps
    bare = replace(SPEC.scale, copy_every_steps=0)
    near = replace(SPEC.checkpoint, near_every_steps=20, near_gib=1.0)
    never = replace(SPEC.checkpoint, every_steps=0)
    for kept, steps in ((SPEC.checkpoint, 50), (near, 10), (never, 1000)):
        forecaster = Forecaster(make_run(scale=bare, checkpoint=kept), FACTS)
        assert forecaster.recovery(hours, alone=False).redone_s == steps * step_s


def test_marked_checkpoints_are_kept_too() -> None:
    marked = make_run(checkpoint=replace(SPEC.checkpoint, keep_every_steps=500))
    assert Forecaster(marked, FACTS).haul().kept == 3 + 4
    odd = make_run(checkpoint=replace(SPEC.checkpoint, every_steps=300))
    assert Forecaster(odd, FACTS).haul().saves == 7, "the last one is at the end"


def test_more_is_lost_where_more_is_expected_to_go() -> None:
    forecaster = Forecaster(SPEC, FACTS)
    kept, spot = (
        forecast(forecaster, [make_offer(gpus=4, spot=spot)]).placement.best for spot in (0, 1)
    )
    assert kept is not None
    assert spot is not None
    assert forecaster.losses(spot) > 10 * forecaster.losses(kept)
    assert spot.bill.losses > kept.bill.losses


def test_several_machines_have_a_network() -> None:
    forecaster = Forecaster(make_run(scale=replace(SPEC.scale, min_workers=4)), FACTS)
    one = forecast(forecaster, [make_offer(gpus=4)]).placement.best
    four = forecast(forecaster, [make_offer(gpus=1)]).placement.best
    assert one is not None
    assert four is not None
    assert network_of(one) is None
    assert network_of(four) is Network.private
    assert four.hours > one.hours


def test_what_is_known_of_speed_makes_it_narrow() -> None:
    offer = make_offer(gpus=4)
    wide = Forecaster(SPEC, FACTS)
    narrow = Forecaster(SPEC, replace(FACTS, efficiency=0.4))
    for forecaster, ratio in ((wide, 2.0), (narrow, 1.4)):
        best = forecast(forecaster, [offer]).placement.best
        assert best is not None
        low, high = forecaster.span(best)
        assert (high / low > ratio) is (forecaster is wide)


def test_a_model_of_ones_own_needs_a_footprint() -> None:
    spec = make_run(model=CustomModelSpec(factory="a:b"))
    with pytest.raises(SpecError, match="model: is your own"):
        Forecaster(spec, FACTS)
    held = Activations(samples=16, saved_bytes=10**9, peak_bytes=2 * 10**9)
    model = Footprint(
        parameters=10**8, trained=10**8, largest=10**7, block=0, blocks=0, activations=held
    )
    forecaster = Forecaster(spec, replace(FACTS, footprint=model))
    assert forecaster.haul().checkpoint_gib == 12 * 10**8 / GIB
    assert forecast(forecaster, [make_offer(gpus=4)]).placement.best is not None


def test_hours_are_those_of_all_steps_where_the_run_fits() -> None:
    spec = make_run(strategy=DdpSpec())
    forecaster = Forecaster(spec, FACTS)
    hours = forecaster.hours
    gpu = all_gpus()["A100-SXM4-80GB"]
    step = estimate_step(spec, gpu=gpu, world=4, per_machine=4, network=None, vocab=VOCAB)
    assert hours(gpu.name, 4, None) == pytest.approx(spec.steps * step.likely_s / 3600)
    slower = hours(gpu.name, 4, Network.public)
    assert slower is not None
    assert slower > spec.steps * step.likely_s / 3600
    assert hours("RTX-3060-12GB", 4, None) is None, "too small"
    assert hours("T4", 4, None) is None, "has no bf16"
    assert hours("ABACUS-1", 4, None) is None
