"""Programs written by a sharded network, by ranks with unequal work, between its steps."""

import os
import socket

import pytest
import tiny_programs
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tenfold.modules.art2prog import Art2Prog
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

pytestmark = pytest.mark.slow


def write_on(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    plain = tiny_programs.module().eval()
    torch.manual_seed(0)
    sharded = Art2Prog(**tiny_programs.MODEL)
    names = ("data_parallel", "tensor_parallel")
    sharded._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=names)
    sharded.configure_model()
    sharded.eval()
    image = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    image = image[: 2 + 4 * rank]
    batch = tiny_programs.batch()
    for _ in range(2):
        found, expected = sharded.candidates(image), plain.candidates(image)
        for one, other in zip(found, expected, strict=True):
            assert one[0].program == other[0].program
            assert abs(one[0].score - other[0].score) < 1e-3
        assert all(isinstance(parameter, DTensor) for parameter in sharded.network.parameters())
        assert torch.allclose(sharded.loss(batch), plain.loss(batch), atol=1e-5)
        sharded.loss(batch).backward()
    dist.destroy_process_group()


def test_ranks_with_unequal_work_write_what_one_process_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(write_on, (port,), nprocs=2)
