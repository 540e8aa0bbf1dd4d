"""Frozen parameters under ZeRO, whose partitions hold only what the optimizer updates.

DeepSpeed casts parameters to the working precision and keeps fp32 masters of those it trains. So
that no strategy and no precision rounds what another one saved, each rank keeps its share of the
frozen ones as they were, on the host, where it costs no GPU memory.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from tidemill.spec.progress import Fragment, Piece, World
from tidemill.train.engine import dtype_name, owned_share, whole


class FrozenParameters:
    """The frozen parameters of a model under ZeRO, named as in the model.

    Every rank owns the same range of each as under ZeRO-3, whatever the stage.
    """

    def __init__(self, model: nn.Module, world: World, *, cast: bool, sharded: bool) -> None:
        """Take `model` before DeepSpeed does.

        Args:
            model: Fresh, on the CPU, in fp32.
            world: This rank's place.
            cast: DeepSpeed will hold the parameters in low precision.
            sharded: DeepSpeed will shard the parameters (stage 3).
        """
        self.world, self.sharded = world, sharded
        self.parameters = {
            f"param.{name}": parameter
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad
        }
        self.masters: dict[str, Fragment] = {}
        if cast:
            self.masters = {
                name: _copied(owned_share(parameter, world))
                for name, parameter in self.parameters.items()
            }

    def owned(self) -> dict[str, Fragment]:
        """The share of this rank, in fp32."""
        return self.masters or {name: self._live(held) for name, held in self.parameters.items()}

    def needed(self) -> dict[str, Fragment]:
        """What this rank reads: no more than its share if the rest can come from other ranks."""
        if self.masters or self.sharded:
            return self.owned()
        return {name: whole(parameter) for name, parameter in self.parameters.items()}

    def restore(self) -> None:
        """Make working parameters of the masters just filled; a collective."""
        for name, master in self.masters.items():
            parameter = self.parameters[name]
            if self.sharded:
                live = self._live(parameter)
                for ours, theirs in zip(master.pieces, live.pieces, strict=True):
                    theirs.data.copy_(ours.data)
            elif master.numel:
                self._gather(master, parameter)

    def _live(self, parameter: nn.Parameter) -> Fragment:
        """This rank's share of a parameter as DeepSpeed holds it."""
        if not self.sharded:
            return owned_share(parameter, self.world)
        held: Tensor = parameter.ds_tensor.detach()  # pyright: ignore[reportAttributeAccessIssue]
        return shard(held, tuple(parameter.ds_shape), self.world.rank)  # pyright: ignore[reportAttributeAccessIssue]

    def _gather(self, master: Fragment, parameter: nn.Parameter) -> None:
        share = -(-master.numel // self.world.size)
        mine = parameter.new_zeros(share)
        for piece in master.pieces:
            mine[: piece.data.numel()].copy_(piece.data)
        every = parameter.new_empty(share * self.world.size)
        dist.all_gather_single(every, mine)
        parameter.data.copy_(every[: master.numel].view(master.shape))


def shard(flat: Tensor, shape: tuple[int, ...], rank: int) -> Fragment:
    """A ZeRO-3 partition: rank k holds elements [k * ceil(n / world), ...), the last one padded.

    Args:
        flat: The partition, 1-D.
        shape: Shape of the whole tensor.
        rank: Number of the partition.
    """
    whole_shape = Fragment(shape, dtype_name(flat.dtype), ())
    start = rank * flat.numel()
    held = max(0, min(flat.numel(), whole_shape.numel - start))
    pieces = (Piece(start, flat.narrow(0, 0, held)),) if held else ()
    return Fragment(shape, whole_shape.dtype, pieces)


def _copied(fragment: Fragment) -> Fragment:
    pieces = tuple(Piece(piece.start, piece.data.clone()) for piece in fragment.pieces)
    return Fragment(fragment.shape, fragment.dtype, pieces)
