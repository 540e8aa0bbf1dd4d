"""Train one run, or with -m several: `python jobs/train.py --help`."""

from tidemill.compose import run_door
from tidemill.plan.run import describe, make_run_plan
from tidemill.spec.run import RunSpec


def main(spec: RunSpec) -> None:
    """Look before leaping, say the plan, train, and say where things are."""
    from tidemill.launch.preflight import preflight
    from tidemill.storage import locate

    ready = preflight(spec)
    plan = make_run_plan(spec, vocab=ready.corpus.vocab, train_tokens=ready.corpus.train_tokens)
    print(*describe(plan), ready.message, sep="\n", flush=True)
    if ready.start != "finished":
        from tidemill.launch.trainer import train

        print(train(spec, ready).message)

    from tidemill.report.summary import write_summary

    run = locate(spec.storage) / spec.name
    write_summary(run)
    print(f"summary: {run / 'summary.md'}\nloss curve: {run / 'loss.svg'}")


if __name__ == "__main__":
    run_door(main, config_name="config", schema=RunSpec)
