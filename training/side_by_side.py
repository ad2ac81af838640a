r"""Trains ManualRNN beside nn.RNN: twins with the same initial weights on the same batches.

Each twin has its own loss, gradients, clipping and optimizer state; the loss that Lightning sees is
the sum of the two losses, whose gradient with respect to one twin is that of its own loss, to the
last bit.

The twins' weights drift apart: each step rounds differently, and training amplifies what it is
given. So their gradients are those of two different functions before long, and say nothing about
who computes them well. The comparison that counts is made at the same weights: at each step, with
the batch of that step and the weights that nn.RNN's twin has reached, the gradients of nn.RNN, of
ManualRNN, and of nn.RNN in float64, which says how large round-off is (``gradients.py``).
How far the twins' own gradients have parted is reported beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

import manual_rnn
from manual_rnn import KernelName

from .datamodule import Batch, Task
from .gradients import Comparison, compare, relative_differences
from .networks import Network, Recurrent, set_weights, trained_gradients
from .options import LEARNING_RATE, check_twins


class SideBySide(LightningModule):
    r"""The twins.

    Args:
        input_size: features of the task at each step (set by the task).
        output_size: outputs at each step (set by the task).
        hidden_size: width H of the hidden state.
        num_layers: layers of the RNN.
        nonlinearity: ``tanh`` or ``relu``; ``relu`` where none is given.
        bias: whether the RNN has biases.
        dropout: between layers; the twins draw the same masks.
        bidirectional: whether there is a second direction of time.
        kernel: how ManualRNN runs; ``reference`` is bitwise equal to nn.RNN on a CPU.
        init_from: file with nn.RNN weights that both twins start from: a state_dict, or a
            Lightning checkpoint.
        recurrent: initial recurrent weights: ``identity``, ``orthogonal``, or nn.RNN's own ``uniform``; where
            none are given, ``identity`` with relu (Le, Jaitly and Hinton 2015), ``uniform`` with tanh.
        tbptt_steps: steps after which backpropagation is cut, the weights move and the state goes on.
        compare_every: steps between two comparisons of gradients.
        tolerance: how far a gradient may part, in units of round-off, before the run has failed.

    Raises:
        ValueError: for an option out of range, or weights in ``init_from`` of other shapes.
        FileNotFoundError: where ``init_from`` is no file.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: PositiveInt = 32,
        num_layers: PositiveInt = 1,
        nonlinearity: Literal["tanh", "relu"] | None = None,
        bias: bool = True,
        dropout: ClosedUnitInterval = 0.0,
        bidirectional: bool = False,
        kernel: KernelName = "default",
        init_from: Path | None = None,
        recurrent: Recurrent | None = None,
        tbptt_steps: PositiveInt | None = None,
        compare_every: PositiveInt = 1,
        tolerance: NonNegativeFloat = 16.0,
    ) -> None:
        super().__init__()
        check_twins(compare_every, tolerance, tbptt_steps, bidirectional, nonlinearity, init_from)
        phi = nonlinearity or "relu"
        self.save_hyperparameters(ignore=["init_from"])  # a checkpoint has weights of its own
        rnn = manual_rnn.patch_rnn.original(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity=phi,
            bias=bias,
            batch_first=True,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        set_weights(rnn, recurrent or ("identity" if phi == "relu" else "uniform"), init_from)
        self.builtin = Network(rnn, nn.Linear(hidden_size * (1 + bidirectional), output_size))
        self.manual = manual_rnn.swap_rnn(deepcopy(self.builtin))
        self.kernel, self.compare_every, self.tolerance = kernel, compare_every, tolerance
        self.tbptt_steps = tbptt_steps
        self.carried: dict[str, Tensor] = {}
        self.drift: dict[str, float] = {}
        self.metrics = nn.ModuleDict()

    @property
    def twins(self) -> dict[str, Network]:
        return {"builtin": self.builtin, "manual": self.manual}

    @property
    def task(self) -> Task:
        task = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(task, Task):
            raise ValueError(f"expected a Task as the Trainer's datamodule, got {type(task).__name__}")
        return task

    def configure_optimizers(self) -> Optimizer:
        """What a plain Trainer gets; the command line's ``--optimizer`` takes its place."""
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def setup(self, stage: str) -> None:
        self.metrics.update({twin: self.task.new_metric() for twin in self.twins})

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        states = {} if batch.starts else self.carried
        comparison = None
        if self.global_step % self.compare_every == 0:
            comparison = self.compare(batch, states.get("builtin"))
            self.log_dict({f"gradient/{name}": value for name, value in comparison.absolute.items()})
        losses = {}
        for name, twin in self.twins.items():
            losses[name], h_n = self.run(twin, batch, states.get(name))
            self.carried[name] = h_n.detach()
        for name, loss in losses.items():
            self.log(f"loss/{name}", loss, sync_dist=True)
        return {"loss": sum(losses.values()), "losses": losses, "comparison": comparison}

    def run(self, network: nn.Module, batch: Batch, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss and the last state."""
        with self.random_numbers_of_this_step(), manual_rnn.use_kernel(self.kernel):
            output, h_n = network(batch.input, hx)
        return self.task.loss(output, batch.target), h_n

    def compare(self, batch: Batch, hx: Tensor | None) -> Comparison:
        """Both gradients at the weights and the carried state of nn.RNN's twin."""
        exact_batch = Batch(batch.input.double(), exact_target(batch.target), batch.starts)
        exact_hx = None if hx is None else hx.double()
        return compare(
            self.builtin,
            self.manual,
            lambda network: self.run(network, batch, hx)[0],
            lambda network: self.run(network, exact_batch, exact_hx)[0],
            self.unit_in_the_last_place(),
            self.tolerance,
            self.global_step,
        )

    def unit_in_the_last_place(self) -> float:
        """Of the precision that the recurrence runs in."""
        mixed = torch.is_autocast_enabled(self.device.type)
        weight = next(self.builtin.parameters())
        return torch.finfo(torch.get_autocast_dtype(self.device.type) if mixed else weight.dtype).eps

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Notes how far the gradients that the twins train with have parted."""
        own = {name: trained_gradients(twin) for name, twin in self.twins.items()}
        self.drift = relative_differences(own["manual"], own["builtin"])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Each twin's gradients are clipped by their own norm."""
        if not gradient_clip_val:
            return
        by_value = gradient_clip_algorithm == "value"
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for twin in self.twins.values():
            clip(twin.parameters(), gradient_clip_val)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate("test", batch)

    def evaluate(self, split: str, batch: Batch) -> None:
        """Logs each twin's loss and metric, the metric in the progress bar too."""
        for name, twin in self.twins.items():
            output, metric = self.answer(twin, batch), self.metrics[name]
            assert isinstance(metric, Metric)
            metric.update(*self.task.scored(output, batch.target))
            loss = self.task.loss(output, batch.target)
            self.log(f"{split}_loss/{name}", loss, sync_dist=True, batch_size=len(output))
            self.log(f"{split}_{self.task.metric}/{name}", metric, prog_bar=True, batch_size=len(output))

    def on_validation_epoch_end(self) -> None:
        """Notes what the worse of the twins reached, for what stops a run."""
        for name, worst in ("loss", torch.max), (self.task.metric, self.task.worst):
            found = [self.trainer.callback_metrics[f"val_{name}/{twin}"] for twin in self.twins]
            self.log(f"val_{name}/worse", worst(torch.stack(found)), logger=False, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"input": batch.input, "output": self.answer(self.manual, batch), "target": batch.target}

    def answer(self, network: Network, batch: Batch) -> Tensor:
        with manual_rnn.use_kernel(self.kernel):
            output: Tensor = network(batch.input)[0]
        return output

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every process's carried states, for a run resumed between two pieces of a sequence."""
        if self.tbptt_steps is not None:
            checkpoint["carried"] = from_every_process(self.carried, self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("carried"):
            states = checkpoint["carried"][self.global_rank]
            self.carried = {name: h.to(self.device) for name, h in states.items()}

    @contextmanager
    def random_numbers_of_this_step(self) -> Iterator[None]:
        """Dropout draws the same masks for every network, and the same ones in a resumed run."""
        if not self.training:
            yield
            return
        seed = torch.initial_seed() + self.trainer.fit_loop.total_batch_idx + 1_000_003 * self.global_rank
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a traceback of each call
            if on_gpu:
                torch.cuda.manual_seed(seed)
            yield


def exact_target(target: Tensor) -> Tensor:
    """Values in float64; classes as they are."""
    return target.double() if target.is_floating_point() else target


def from_every_process(value: Any, processes: int) -> list[Any]:
    """The values of all processes, in their order; each of them has to ask."""
    values = [value] * processes
    if processes > 1:
        torch.distributed.all_gather_object(values, value)
    return values
