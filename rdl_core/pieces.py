"""A student in pieces: of every weight, each of several processes holds a part (FSDP).

Weights, gradients and the optimiser's moments are shared out; a layer's weights are together only
while it computes. That is worth its traffic where a device cannot hold 16 bytes a parameter. As a
layer waits for its pieces, all processes must go through the encoder equally often: `rounds`.
Reference: Zhao et al. (PyTorch FSDP), VLDB 2023.
"""

from __future__ import annotations

import os

from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import processes

__all__ = ["asked", "in_pieces", "like", "rounds", "split", "whole"]


def asked() -> bool:
    """Whether ``accelerate launch --use_fsdp`` started several processes.

    >>> asked()
    False
    """
    by_flag = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return by_flag and processes().num_processes > 1


def split(student: CrossEncoder) -> None:
    """Leave to each process its piece of every weight, in place; gradients are sums over them.

    Args:
        student: The same in all processes, on their devices.

    >>> split(tiny_student)  # doctest: +SKIP
    """
    mesh = init_device_mesh(student.device.type, (processes().num_processes,))
    for layer in student.layers():
        fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale on the way


def in_pieces(student: CrossEncoder) -> bool:
    """Whether `split` was here.

    >>> in_pieces(tiny_student)
    False
    """
    return isinstance(student, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes, which all must ask; others as they are.

    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(weight: Tensor, value: Tensor) -> Tensor:
    """Of a whole tensor, what this process holds of a weight of that shape, on its device.

    >>> like(torch.zeros(2), torch.ones(2))
    tensor([1., 1.])
    """
    value = value.to(weight.device)
    if not isinstance(weight, DTensor):
        return value
    return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)


def rounds(student: CrossEncoder, n: int) -> int:
    """How often this process must go through the encoder that has `n` batches of its own.

    >>> rounds(tiny_student, 3)
    3
    """
    return max(gather_object([n])) if in_pieces(student) else n
