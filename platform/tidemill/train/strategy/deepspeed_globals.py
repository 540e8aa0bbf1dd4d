"""What DeepSpeed 0.19.8 keeps in module globals, and how it is undone.

DeepSpeed builds an engine for a process that ends with it. A survivor that builds the next one has
numbered modules, patched torch and cached methods of the old one; a newcomer to the same group has
not. Each function here undoes one thing and says what happens without. Not undone is what no engine
of ours touches: autocast, `zero.Init` contexts, the logging of collectives.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch


def reset_deepspeed() -> None:
    """Make DeepSpeed, which is imported, what it was before its first engine."""
    for reset in RESETS:
        reset()


def forget_groups() -> None:
    """Without: the next engine asks for its rank in a group that is gone, a ValueError."""
    _module("utils.groups")._release_process_group_references()  # noqa: SLF001
    _module("comm.comm").cdb = None


def forget_numbers() -> None:
    """Without: ZeRO-3 numbers on, a newcomer from 0, and they disagree on what to gather.

    The number of modules is kept in the default value of an argument.
    """
    offload = _module("runtime.zero.parameter_offload").DeepSpeedZeRoOffload
    offload._register_deepspeed_module.__defaults__[0][0] = 0  # noqa: SLF001
    init = _module("runtime.zero.partition_parameters").Init
    init.param_id = init.num_persisted_parameters = init.num_persisted_elements = 0


def forget_modules() -> None:
    """Without: every ZeRO-3 model stays alive.

    The root is pushed on a stack that nobody pops, and an exception in a forward pass leaves more.
    """
    _module("runtime.zero.parameter_offload").FWD_MODULE_STACK.clear()


def forget_releases() -> None:
    """Without: every ZeRO-3 engine stays alive, cached as an argument of one of its methods."""
    coordinator = _module("runtime.zero.partitioned_param_coordinator")
    methods = vars(coordinator.PartitionedParameterCoordinator)
    for cell in methods["_PartitionedParameterCoordinator__params_to_release"].__closure__:
        cell.cell_contents.cache_clear()


def unpatch_torch() -> None:
    """Without: every later model multiplies with the `linear` that DeepSpeed made for ZeRO-3."""
    patched = _module("runtime.zero.partition_parameters").InsertPostInitMethodToModuleSubClasses
    torch.nn.functional.linear = getattr(patched, "linear_bk", torch.nn.functional.linear)


RESETS = (forget_groups, forget_numbers, forget_modules, forget_releases, unpatch_torch)


def _module(name: str) -> Any:
    return importlib.import_module(f"deepspeed.{name}")
