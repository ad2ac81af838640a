r"""ManualRNN beside nn.RNN: twins with the same initial weights, trained on the same batches.

    h_t = phi(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)        nn.RNN or ManualRNN, ``network.rnn``
    y_t = h_t W^T + b                                           ``network.readout``

Each twin has its own loss, gradients, clipping and optimizer state. The loss that Lightning sees is the sum
of both; its gradient with respect to one twin is that of the twin's own loss, to the last bit.
The twins' weights drift apart: each step rounds differently, and training amplifies the difference. So the
comparison that counts is made at the same weights (``callbacks.CompareGradients``).
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

import manual_rnn
from manual_rnn import KernelName

from .compare import same_random_numbers
from .datamodule import Task, at_least, seeded_by
from .files import rnn_weights
from .objective import Batch, MetricName, Objective

LEARNING_RATE = 5e-3
Recurrent = Literal["identity", "orthogonal", "uniform"]


class Network(nn.Module):
    r"""A recurrent network and a linear readout of every step.

    Shapes: input (B, T, I), ``hx`` (L D, B, H) or None for zeros; output (B, T, O), ``h_n`` (L D, B, H).
    """

    def __init__(self, rnn: nn.Module, readout: nn.Linear) -> None:
        super().__init__()
        self.rnn, self.readout = rnn, readout

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(input, hx)
        return self.readout(output), h_n


class Twins(LightningModule):
    r"""The twins, ``builtin`` and ``manual``. A batch is (input, target), or a task's ``Batch``.

    Args:
        input_size: features of the task at each step (set by the task).
        output_size: outputs at each step (set by the task).
        metric: ``mse``, ``accuracy`` or ``perplexity`` (set by the task); it decides the loss too.
        scored_steps: how many of the last steps count for the metric (set by the task).
        hidden_size: width H of the hidden state.
        num_layers: layers of the RNN.
        nonlinearity: ``tanh`` or ``relu``; ``tanh`` where none is given.
        bias: whether the RNN has biases.
        dropout: between layers; the twins draw the same masks.
        bidirectional: whether there is a second direction of time.
        kernel: how ManualRNN runs; ``reference`` is bitwise equal to nn.RNN on a CPU.
        init_from: file with nn.RNN weights to start from: a state_dict, or a Lightning checkpoint.
        recurrent: initial recurrent weights: ``identity`` (the default with relu; Le, Jaitly, Hinton 2015),
            ``orthogonal``, or ``uniform``, those of nn.RNN (the default with tanh).
        tbptt_steps: steps after which backpropagation is cut, the weights move and the state goes on.

    Raises:
        ValueError: for an option out of range, or weights in ``init_from`` of other shapes.
        FileNotFoundError: where ``init_from`` is no file.

    Example:
        >>> data = TensorDataset(torch.randn(64, 20, 3), torch.randn(64, 20, 1))
        >>> trainer = Trainer(max_epochs=2, callbacks=CompareGradients())
        >>> trainer.fit(Twins(input_size=3, output_size=1), DataLoader(data, batch_size=8))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        metric: MetricName = "mse",
        scored_steps: int | None = None,
        hidden_size: int = 32,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        kernel: KernelName = "default",
        init_from: Path | None = None,
        recurrent: Recurrent | None = None,
        tbptt_steps: int | None = None,
    ) -> None:
        super().__init__()
        if tbptt_steps is not None:
            at_least(1, tbptt_steps=tbptt_steps)
            if bidirectional:
                raise ValueError("expected one direction with tbptt_steps, got bidirectional=True")
        if init_from is not None and nonlinearity is None:
            raise ValueError("expected a nonlinearity with init_from, since a file of weights doesn't say it")
        phi = nonlinearity or "tanh"
        self.save_hyperparameters(ignore=["init_from"])  # a checkpoint has weights of its own
        options: Any = {"nonlinearity": phi, "bias": bias, "dropout": dropout, "bidirectional": bidirectional}
        rnn = manual_rnn.patch_rnn.original(input_size, hidden_size, num_layers, batch_first=True, **options)
        set_weights(rnn, recurrent or ("identity" if phi == "relu" else "uniform"), init_from)
        self.builtin = Network(rnn, nn.Linear(hidden_size * (1 + bidirectional), output_size))
        self.manual = manual_rnn.swap_rnn(deepcopy(self.builtin))
        self.objective = Objective(metric, output_size, scored_steps)
        self.metrics = nn.ModuleDict({name: self.objective.new_metric() for name in self.twins})
        self.kernel, self.tbptt_steps = kernel, tbptt_steps
        self.carried: dict[str, Tensor] = {}

    @classmethod
    def for_task(cls, task: Task, **options: Any) -> "Twins":
        """Twins of a task's sizes and metric. Raises ValueError where the task isn't whole."""
        task.check()
        return cls(task.input_size, task.output_size, task.metric, task.scored_steps, **options)

    @property
    def twins(self) -> dict[str, Network]:
        return {"builtin": self.builtin, "manual": self.manual}

    def configure_optimizers(self) -> Optimizer:
        """Adam, where the command line puts no other in its place."""
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ManualRNN's twin: output (B, T, O) and ``h_n``."""
        with manual_rnn.use_kernel(self.kernel):
            output, h_n = self.manual(input, hx)
        return output, h_n

    def answer(self, network: nn.Module, batch: Batch, twin: str) -> tuple[Tensor, Tensor, Tensor]:
        """Output, loss and ``h_n`` of a network; a piece of a sequence goes on from the state of ``twin``."""
        hx = None if batch.starts else self.carried[twin].to(batch.input.dtype)
        with manual_rnn.use_kernel(self.kernel):
            output, h_n = network(batch.input, hx)
        return output, self.objective.loss(output, batch.target), h_n

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """The loss of a network on a batch, for ``CompareGradients``: from the states of nn.RNN's twin."""
        return self.answer(network, Batch(*batch), "builtin")[1]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        losses, batch = {}, Batch(*batch)
        seed = seeded_by(torch.initial_seed(), self.current_epoch, batch_idx, self.global_rank).initial_seed()
        for name, twin in self.twins.items():
            with same_random_numbers(seed, self.device):
                _, losses[name], h_n = self.answer(twin, batch, name)
            self.carried[name] = h_n.detach()
            self.log(f"loss/{name}", losses[name], sync_dist=True)
        return {"loss": losses["builtin"] + losses["manual"], "losses": losses}

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

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("val", Batch(*batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("test", Batch(*batch))

    def evaluate(self, split: str, batch: Batch) -> None:
        """Logs each twin's loss and metric, the metric in the progress bar too."""
        B = len(batch.input)
        for name, twin in self.twins.items():
            metric: Any = self.metrics[name]
            output, loss, _ = self.answer(twin, batch, name)
            metric.update(*self.objective.scored(output, batch.target))
            self.log(f"{split}_loss/{name}", loss, sync_dist=True, batch_size=B)
            self.log(f"{split}_{self.objective.metric}/{name}", metric, prog_bar=True, batch_size=B)

    def on_validation_epoch_end(self) -> None:
        """Logs the value of the worse twin, by which a run is stopped."""
        worst_score = torch.min if self.objective.mode == "max" else torch.max
        for name, worst in ("loss", torch.max), (self.objective.metric, worst_score):
            found = [self.trainer.callback_metrics[f"val_{name}/{twin}"] for twin in self.twins]
            self.log(f"val_{name}/worse", worst(torch.stack(found)), logger=False, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        batch = Batch(*batch)
        return {"input": batch.input, "output": self(batch.input)[0], "target": batch.target}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every process's carried states, for a run resumed between two pieces of a sequence."""
        if self.tbptt_steps is not None:
            checkpoint["carried"] = from_every_process(self.carried, self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("carried"):
            states = checkpoint["carried"][self.global_rank]
            self.carried = {name: h.to(self.device) for name, h in states.items()}


def set_weights(rnn: nn.RNN, recurrent: Recurrent, init_from: Path | None) -> None:
    """Gives ``rnn`` its initial weights: those of a file, or recurrent ones; ``uniform`` are its own.

    Raises ValueError where the file has not one RNN of these shapes, FileNotFoundError where there is none.
    """
    if recurrent != "uniform":
        manual_rnn.ManualRNN.from_builtin(rnn).reset_parameters(recurrent=recurrent)  # it shares the weights
    if init_from is None:
        return
    weights = rnn_weights(Path(init_from))
    check_shapes(rnn, weights, f"from {init_from}; see --model.hidden_size and the others")
    rnn.load_state_dict(weights)


def check_shapes(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Raises ValueError where weights don't fit the module, for the first of them."""
    expected = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    got = {name: tuple(p.shape) for name, p in weights.items()}
    for name in {**expected, **got}:
        if expected.get(name) != got.get(name):
            raise ValueError(f"expected {name} of shape {expected.get(name)}, got {got.get(name)} {origin}")


def from_every_process(value: Any, processes: int) -> list[Any]:
    """The values of all processes, in their order; each of them has to ask."""
    values = [value] * processes
    if processes > 1:
        torch.distributed.all_gather_object(values, value)
    return values
