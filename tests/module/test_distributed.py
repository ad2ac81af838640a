r"""Two processes on the CPU, DDP and FSDP2: the gradients of one process with the whole batch."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import assert_same
from torch import Tensor, nn

from manual_rnn import ManualRNN

WORLD = 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = ManualRNN(3, 4, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(8, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        return self.head(output[:, -1])


def batch() -> Tensor:
    return torch.randn(2 * WORLD, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).sin().mean().backward()
    named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: getattr(g, "full_tensor", lambda g=g: g)() for name, g in named.items()}


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (WORLD,))
    fully_shard(model.rnn, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPS = {"DDP": ddp, "FSDP2": fsdp}


def work(rank: int, folder: str) -> None:
    """One process: its share of the batch, and every gradient into a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    try:
        for name, wrap in WRAPS.items():
            found = gradients(wrap(Model()), batch()[rank::WORLD])
            torch.save(found, os.path.join(folder, f"{name}{rank}.pt"))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the processes left; started once, since importing torch in each is most of the time."""
    folder = tmp_path_factory.mktemp("distributed")
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(WORLD))
@pytest.mark.parametrize("wrap", WRAPS)
def test_two_processes_give_the_gradients_of_one(folder, wrap, rank):
    assert_same(torch.load(folder / f"{wrap}{rank}.pt"), gradients(Model(), batch()))
