"""What a process pays once is paid by the warm-up; and no group is kept by what is imported.

The kit's ranks have everything imported before they live, so these tests start their own Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.kit.training import losses_of, tiny_run
from tests.kit.world import run_world

WARMED = ("fsdp2", "deepspeed_z3")
FRESH = """
    import sys
    import torch
    from tests.kit.lives import form, in_a_thread
    from tests.kit.training import run_tiny, tiny_run
    from tidemill.spec.progress import EventKind, World
    from tidemill.train.teardown import dismantle, find_survivors
    from tidemill.train.warmup import import_libraries, warm_up

    def attempt(run, meeting):
        form(World(), meeting)
        notes, engine = run_tiny(World(), run)
        losses = [step["loss"] for step in notes.all(EventKind.step)]
        return losses, find_survivors(dismantle(engine, failed=False))

    torch.set_num_threads(1)
    assert "deepspeed" not in sys.modules
    assert "torch._dynamo" not in sys.modules
"""
IMPORTED = """
    for name in ("ddp", "fsdp2", "deepspeed_z1"):
        run = tiny_run(name, steps=1)
        import_libraries(run, "cpu")
        _, survivors = in_a_thread(lambda: attempt(run, sys.argv[1] + name))
        assert not survivors, (name, survivors)
"""
WARM = """
    for name in sys.argv[2:]:
        run = tiny_run(name, steps=3)
        assert not find_survivors(warm_up(run, "cpu"))
        assert not torch.distributed.is_initialized()
        before = set(sys.modules)
        losses, survivors = in_a_thread(lambda: attempt(run, sys.argv[1] + name))
        assert set(sys.modules) == before, (name, set(sys.modules) - before)
        assert not survivors, (name, survivors)
        print(losses)
"""


def _in_a_fresh_process(script: str, place: Path) -> list[str]:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            textwrap.dedent(FRESH + script),
            f"{place}/",
            *WARMED,
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_libraries_imported_in_time_keep_no_group(tmp_path: Path) -> None:
    _in_a_fresh_process(IMPORTED, tmp_path)


def test_who_is_warm_imports_nothing_more_and_trains_as_ever(tmp_path: Path) -> None:
    ever = [run_world(losses_of, 1, tiny_run(name, steps=3))[0] for name in WARMED]
    assert _in_a_fresh_process(WARM, tmp_path) == [str(losses) for losses in ever]
