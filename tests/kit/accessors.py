"""What an engine holds, read whole and without Tidemill's own account of who holds what.

DDP: the tensors themselves. FSDP2: `DTensor.full_tensor`. DeepSpeed: its own `safe_get_full_*`,
linked anew first, because stages 1 and 2 link the moments of the first parameter group only. Of
frozen parameters in low precision DeepSpeed knows no master; theirs are joined from the shares that
Tidemill keeps. All functions are collective and give the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tidemill.spec.progress import Fragment
from tidemill.train.engine import Engine
from tidemill.train.strategy.deepspeed import DeepSpeedEngine
from tidemill.train.strategy.torch_engine import TorchEngine


def masters_and_moments(engine: Engine) -> dict[str, Tensor]:
    """Every parameter and moment, whole, fp32, on the CPU: `param.NAME`, `exp_avg.NAME`, ..."""
    if isinstance(engine, DeepSpeedEngine):
        return dict(_of_zero(engine))
    engine = cast("TorchEngine", engine)
    found: dict[str, Tensor] = {}
    for name, parameter in engine.model.model.named_parameters():
        found[f"param.{name}"] = _whole(parameter)
        for key, value in engine.optimizer.state.get(engine.masters[f"model.{name}"], {}).items():
            if key != "step":
                found[f"{key}.{name}"] = _whole(_like(parameter, value))
    return found


def buffers(engine: Engine) -> dict[str, Tensor]:
    """Every persistent buffer: `buffer.NAME`."""
    kept = model_of(engine).state_dict()
    return {
        f"buffer.{name}": buffer.detach().cpu().clone()
        for name, buffer in model_of(engine).named_buffers()
        if name in kept
    }


def scalars(engine: Engine) -> dict[str, Tensor]:
    """Adam's step count, the loss scale and the good steps it counts, as `scalar.NAME`."""
    if isinstance(engine, DeepSpeedEngine):
        optimizer, scaler = engine.zero.optimizer, engine.zero.loss_scaler
        value = scaler.cur_scale
        good = scaler.cur_iter - scaler.last_overflow_iter - 1 if scaler.dynamic else 0
    else:
        engine = cast("TorchEngine", engine)
        optimizer, value, good = engine.optimizer, engine.scale.value, engine.scale.good_steps
    (steps,) = {float(state["step"]) for state in optimizer.state.values()}
    return {
        "scalar.taken_steps": torch.tensor(steps),
        "scalar.loss_scale": torch.tensor(float(value)),
        "scalar.good_steps": torch.tensor(good),
    }


def everything(engine: Engine) -> dict[str, Tensor]:
    """All of a run's state that an engine holds."""
    return masters_and_moments(engine) | buffers(engine) | scalars(engine)


def end(engine: Engine) -> None:
    """Take an engine down, so that the process may build another one."""
    if isinstance(engine, DeepSpeedEngine):
        engine.engine.destroy()


def working_weights(engine: Engine) -> dict[str, Tensor]:
    """Every parameter as forward sees it, by its name with `param.` before it."""
    import deepspeed

    found: dict[str, Tensor] = {}
    for name, parameter in model_of(engine).named_parameters():
        if hasattr(parameter, "ds_tensor"):
            with deepspeed.zero.GatheredParameters([parameter]):
                found[f"param.{name}"] = parameter.detach().cpu().clone()
        else:
            found[f"param.{name}"] = _whole(parameter)
    return found


def model_of(engine: Engine) -> nn.Module:
    """The model inside."""
    if isinstance(engine, DeepSpeedEngine):
        return engine.engine.module.model
    return cast("TorchEngine", engine).model.model


def _like(parameter: Tensor, held: Tensor) -> Tensor:
    """What is held of a tensor that is spread over ranks as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return held
    return DTensor.from_local(
        held,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _whole(tensor: Tensor) -> Tensor:
    held = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return held.detach().cpu().clone()


def _of_zero(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    zero: Any = engine.zero
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    working = working_weights(engine)
    keys = {
        key
        for state in zero.optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value) and value.dim() > 0
    }
    for name, parameter in model_of(engine).named_parameters():
        label = f"param.{name}"
        if parameter.requires_grad:
            master = cast("Tensor", safe_get_full_fp32_param(parameter))
            for key in sorted(keys):
                moment = cast("Tensor", safe_get_full_optimizer_state(parameter, key))
                yield f"{key}.{name}", moment.detach().cpu().clone()
        elif label in engine.frozen.masters:
            master = _joined(engine.frozen.masters[label])
        else:
            master = working[label]
        master = master.detach().cpu().clone()
        assert torch.equal(working[label], master.to(working[label].dtype)), name
        yield label, master


def _joined(fragment: Fragment) -> Tensor:
    """The sum over ranks of disjoint shares; zero elsewhere."""
    flat = torch.zeros(fragment.numel)
    for piece in fragment.pieces:
        flat[piece.start : piece.start + piece.data.numel()] = piece.data
    dist.all_reduce(flat)
    return flat.view(fragment.shape)
