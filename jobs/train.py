"""Train one run, or with -m several: `python jobs/train.py --help`."""

import sys

from tidemill.compose import run_door
from tidemill.errors import TrainingError
from tidemill.plan.run import describe, make_run_plan
from tidemill.spec.run import RunSpec


def say(line: str) -> None:
    """Show a line now, also where the output is a file."""
    print(line, flush=True)


def main(spec: RunSpec) -> None:
    """Look before leaping, say the plan, train, and say where things are."""
    from tidemill.launch.preflight import Start, preflight
    from tidemill.report.summary import write_summary

    ready = preflight(spec)
    corpus = ready.corpus
    plan = make_run_plan(ready.spec, vocab=corpus.vocab, train_tokens=corpus.train_tokens)
    say("\n".join([*describe(plan), ready.message]))
    if ready.start is Start.finished:
        return

    from tidemill.launch.trainer import train

    try:
        outcome = train(ready, say)
    except TrainingError:
        write_summary(ready.run)
        raise
    write_summary(ready.run)
    say(f"{outcome.message}\nsummary: {ready.run}/summary.md\ncurve: {ready.run}/loss.svg")
    if outcome.exit_code:
        sys.exit(outcome.exit_code)


if __name__ == "__main__":
    run_door(main, config_name="config", schema=RunSpec)
