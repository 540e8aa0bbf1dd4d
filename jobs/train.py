"""Train one run, or with -m several: `python jobs/train.py --help`."""

from functools import partial

from tidemill.compose import run_door
from tidemill.plan.run import describe, make_run_plan
from tidemill.spec.run import RunSpec


def main(spec: RunSpec) -> None:
    """Look before leaping, say the plan, train, and say where things are."""
    from tidemill.launch.preflight import Start, preflight

    ready = preflight(spec)
    plan = make_run_plan(spec, vocab=ready.corpus.vocab, train_tokens=ready.corpus.train_tokens)
    print(*describe(plan), ready.message, sep="\n", flush=True)
    if ready.start is Start.finished:
        return

    from tidemill.launch.trainer import train
    from tidemill.report.summary import write_summary

    try:
        outcome = train(ready, say=partial(print, flush=True))
    finally:
        print(f"summary: {write_summary(ready.run)}")
    print(outcome.message)
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)


if __name__ == "__main__":
    run_door(main, config_name="config", schema=RunSpec)
