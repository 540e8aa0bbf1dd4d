"""What Hydra must know before it reads `conf/`: the spec classes and a few resolvers.

The classes sit under `schema/`, apart from the groups, so that they are never offered as options.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from tidemill.spec.base import Spec
from tidemill.spec.doors import AuditSpec, CheckpointsSpec, ExportSpec, GenerateSpec
from tidemill.spec.fleet import FleetSpec
from tidemill.spec.plan import PlanSpec
from tidemill.spec.replay import ReplaySpec
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec, DeepSpeedSpec, Fsdp2Spec
from tidemill.spec.supervise import SuperviseSpec
from tidemill.spec.training import (
    AdamWSpec,
    CustomModelSpec,
    GptSpec,
    SgdSpec,
    SyntheticSpec,
    TextSpec,
    TokensSpec,
)

# Beside the folder of the door that was opened: on a cluster, the package lies somewhere else.
CONF = next(
    (
        root / "conf"
        for root in (Path(sys.argv[0]).absolute().parent.parent, Path(__file__).parents[3])
        if (root / "conf" / "config.yaml").is_file()
    ),
    Path("conf").absolute(),
)
HYDRA = "1.3"
HELP_COLUMN = 30

SCHEMAS: dict[str, type[Spec]] = {
    "run": RunSpec,
    "generate": GenerateSpec,
    "export": ExportSpec,
    "checkpoints": CheckpointsSpec,
    "audit": AuditSpec,
    "supervise": SuperviseSpec,
    "replay": ReplaySpec,
    "fleet": FleetSpec,
    "plan": PlanSpec,
    "model/gpt": GptSpec,
    "model/custom": CustomModelSpec,
    "data/text": TextSpec,
    "data/tokens": TokensSpec,
    "data/synthetic": SyntheticSpec,
    "optim/adamw": AdamWSpec,
    "optim/sgd": SgdSpec,
    "strategy/ddp": DdpSpec,
    "strategy/fsdp2": Fsdp2Spec,
    "strategy/deepspeed": DeepSpeedSpec,
}


def register() -> None:
    """Tell Hydra the schemas, and the resolvers that the files in `conf/` use."""
    store = ConfigStore.instance()
    for path, schema in SCHEMAS.items():
        group, _, name = f"schema/{path}".rpartition("/")
        store.store(group=group, name=name, node=schema, provider="tidemill")
    OmegaConf.register_new_resolver("share", _share, replace=True)
    OmegaConf.register_new_resolver("verbatim", _verbatim, replace=True)
    OmegaConf.register_new_resolver("options", _help_on_group, replace=True)
    OmegaConf.register_new_resolver("shown", _help_on_key, replace=True)


def _share(whole: float, share: float) -> int:
    """`${share:${steps},0.1}` is a tenth of the steps, rounded down."""
    return int(whole * share)


def _verbatim(text: str) -> str:
    """`${verbatim:247b7d}` is the text of these bytes, whatever OmegaConf would make of it."""
    return bytes.fromhex(text).decode()


def _help_on_group(group: str, *, _root_: DictConfig) -> str:
    """`${options:model}` in a help text: the option in use, then the others."""
    runtime = _root_.hydra.runtime
    chosen = runtime.choices.get(group)
    found = [
        path.stem
        for source in runtime.config_sources
        if source.schema == "file"
        for path in sorted((Path(source.path) / group).glob("*.yaml"))
    ]
    others = ", ".join(option for option in found if option != chosen)
    shown = f"{group}={chosen}"
    return f"{shown:{HELP_COLUMN}}or {others}" if others else shown


def _help_on_key(key: str, *, _root_: DictConfig) -> str:
    """`${shown:steps}` in a help text: the key with its value, padded to a column."""
    value: Any = OmegaConf.select(_root_, key, throw_on_missing=False)
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, Enum):
        value = value.name
    shown = f"{key}={'' if value is None else value}"
    return f"{shown:{HELP_COLUMN}}"
