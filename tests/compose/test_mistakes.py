"""Every mistake on a command line or in a file ends as one line that says what to type instead."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compose.conftest import Ended
from tidemill.spec.doors import ExportSpec, GenerateSpec

ROOT = Path(__file__).parents[2]

# What is typed, and what the one line must hold: the key first, then problem and remedy.
MISTAKES = {
    "unknown key": ("stepz=3", "stepz: there is no such key; did you mean steps?"),
    "unknown key in a group": (
        "batch.gobal_size=3",
        "batch.gobal_size: there is no such key; did you mean batch.global_size?",
    ),
    "key without its group": ("lr=3", "lr: there is no such key; did you mean optim.lr?"),
    "group misspelt": ("modell=x", "modell: there is no such key; did you mean model?"),
    "key like no other": ("batch.q=1", "use one of batch.global_size, batch.micro_size"),
    "key from nowhere": ("zebra=1", "zebra: there is no such key; --cfg job shows all keys"),
    "key of a variant not in use": (
        "model.factory=a:b",
        "model.factory: belongs to CustomModelSpec, which is not in use; leave it out, or choose",
    ),
    "unknown key, added": ("+foo=1", "foo: there is no such key"),
    "unknown key, forced": ("++batch.foo=1", "batch.foo: there is no such key"),
    "unknown option": (
        "model=gpt_nan",
        "model: there is no 'gpt_nan'; did you mean model=gpt_nano? options: custom, gpt_124m,",
    ),
    "unknown experiment": ("experiment=helo", "did you mean experiment=hello?"),
    "number for an option": ("model=3", "model: '3' cannot be an option; options: custom,"),
    "list for an option": ("batch=[1]", "batch: '[1]' cannot be an option; options: tokens_"),
    "nothing for an option": ("model=", "model: '' cannot be an option; options: custom,"),
    "no experiment": ("experiment=null", "experiment: 'null' cannot be an option; ~experiment"),
    "word for a whole number": ("steps=x", "steps: 'x' is not a whole number; use a whole number"),
    "fraction for a whole number": ("steps=1.5", "steps: '1.5' is not a whole number"),
    "word for a number": ("optim.lr=x", "optim.lr: 'x' is not a number; use a number"),
    "word for a switch": ("report.live=maybe", "report.live: 'maybe' is neither true nor false"),
    "misspelt choice": (
        "resume=atuo",
        "resume: 'atuo' is none of auto, never, must; did you mean auto?",
    ),
    "choice like no other": ("resume=9", "resume: '9' is none of auto, never, must; use one"),
    "one for several": ("data.paths=foo", "data.paths: is a list; write data.paths=[A,B]"),
    "null": ("steps=null", "steps: needs a value and got null; give it one, steps=VALUE"),
    "key below a value": ("steps.x=3", "steps: '{}' is not a whole number"),
    "no value": ("steps", "steps: has no value; write steps=VALUE"),
    "no key": ("=3", "=3: has no key; write KEY=VALUE"),
    "grammar": ("steps=a b:(c", "steps: cannot read 'a b:(c'; quote it"),
    "several values": ("seed=1,2", "seed: has several values; add -m to run one job for each"),
    "range of values": ("seed=range(1,3)", "seed: has several values; add -m"),
    "a key taken out": ("~steps", "steps: cannot be taken out; give it a value, steps=VALUE"),
    "a group taken out": ("~model", "model: has no value; give it one, model=VALUE"),
    "mandatory value": ("model=custom", "model.factory: has no value; give it one, model.factory="),
    "reference to nothing": ("name=${nope}", "name: Interpolation key 'nope' not found; correct"),
    "unknown resolver": ("name=${nope:1}", "name: Unsupported interpolation type nope; correct"),
    "field": ("batch.micro_size=0", "batch.micro_size: 0 is too small; use 1 or more"),
    "relation": (
        "batch.micro_size=99",
        "batch.micro_size: 99 is more than batch.global_size=64; use 64 or less",
    ),
    "relation to a computed value": (
        "optim.warmup_steps=400",
        "200 is not after optim.warmup_steps=400 (optim.decay_steps is ${steps}); use more decay",
    ),
    "relation between groups": (
        "strategy.overlap=true",
        "strategy.overlap: needs a GPU's streams and scale.gpus_per_worker is 0; use strategy.",
    ),
    "unknown flag": ("--fast", "--fast: there is no such flag; see --help and --hydra-help"),
    "flag without its value": ("--cfg", "--cfg/-c: expected one argument; see --help"),
    "wrong value of a flag": ("--cfg=all_of_it", "--cfg/-c: invalid choice: 'all_of_it'"),
    "flag that needs another": ("--resolve", "configuration: The --resolve flag can only be used"),
    "unknown file": ("--config-name=nope", "--config-name: there is no file nope.yaml"),
    "unknown directory": ("--config-dir=nope", "configuration: Additional config directory"),
    "a key of Hydra": ("hydra.foo=3", "hydra.foo: there is no such key"),
    "a schema for an option": ("schema/model=gpt", "schema/model: there is no such key"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_run(
    case: str, open_door: Callable[..., Ended]
) -> None:
    typed, told = MISTAKES[case]
    ended = open_door(typed)
    assert told in ended.error
    assert ended.code == 2
    assert ended.out == ""
    assert ended.given == []


def test_entries_of_a_custom_model_are_added(open_door: Callable[..., Ended]) -> None:
    chosen = ("model=custom", "model.factory=a:b")
    ended = open_door(*chosen, "model.options.depth=3")
    assert ended.error == (
        "model.options.depth: model.options has no such entry; add it with "
        "+model.options.depth=VALUE"
    )
    (spec,) = open_door(*chosen, "+model.options.depth=3").given
    assert spec.model.options == {"depth": 3}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ((), "run: has no value; give it one, run=VALUE"),
        (("run=a/b",), "run: 'a/b' is not the name of a run; use the name it was trained under"),
        (("run=a", "token=1"), "token: there is no such key; did you mean tokens?"),
        (("run=a", "temperature=-1"), "temperature: -1.0 is out of range; use 0 to 100"),
        (("run=a", "model=gpt_nano"), "model: there is no such key"),
    ],
)
def test_mistakes_at_the_generate_door(
    typed: tuple[str, ...], told: str, open_door: Callable[..., Ended]
) -> None:
    ended = open_door(*typed, config_name="generate", schema=GenerateSpec)
    assert told in ended.error
    assert ended.code == 2


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("run=a",), "to: has no value; give it one, to=VALUE"),
        (("run=a", "to="), "to: is empty; name a directory or a URI"),
        (("run=a", "to=b", "dtype=int8"), "dtype: 'int8' is none of fp32, bf16, fp16; use one"),
    ],
)
def test_mistakes_at_the_export_door(
    typed: tuple[str, ...], told: str, open_door: Callable[..., Ended]
) -> None:
    ended = open_door(*typed, config_name="export", schema=ExportSpec)
    assert told in ended.error
    assert ended.code == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("# @package _global_\nstepz: 3\n", "stepz: there is no such key; did you mean steps?"),
        ("# @package _global_\nsteps: soon\n", "steps: 'soon' is not a whole number"),
        ("# @package _global_\nbatch: {size: 3}\n", "batch.size: there is no such key"),
        ("# @package _global_\nsteps: [\n", "configuration: "),
        (
            "# @package _global_\ndefaults:\n  - override /optim: adam\n",
            "optim: there is no 'adam'; did you mean optim=adamw? options: adamw, sgd",
        ),
    ],
)
def test_mistakes_in_a_file_of_ones_own(
    content: str, told: str, open_door: Callable[..., Ended], tmp_path: Path
) -> None:
    own = tmp_path / "conf" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(content)
    ended = open_door("--config-dir", str(own.parent), "experiment=mine")
    assert told in ended.error
    assert ended.code == 2


def test_a_person_can_ask_for_the_traceback(
    open_door: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override 'stepz'"):
        open_door("stepz=3")


@pytest.mark.parametrize("typed", ["stepz=3", "--help", "batch.micro_size=99"])
def test_nothing_heavy_is_imported_to_say_so(typed: str, tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['jobs/train.py', {typed!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'jobs' / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    heavy = {'deepspeed', 'matplotlib', 'numpy', 'pyarrow', 'ray', 'rich', 'torch'}\n"
        "    print('heavy:', *sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert list(tmp_path.iterdir()) == []
