"""The training loop: `train` runs it, `step_of` takes one optimizer step, `State` is what a checkpoint holds.

Everything random is a function of (seed, step, micro-batch): examples, noise, timesteps, dropped captions. So a run
that was stopped resumes from its checkpoint and ends, on the same machine, in the same bits as an undisturbed one, and
several processes (torchrun) share the micro-batches of a step among them and learn what one would.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from experiments.files import UserError, atomically, difference, say, write
from experiments.pictures import save_png
from experiments.run import build
from experiments.run.contents import digest_of
from experiments.run.logger import Logger
from experiments.training.parts import Part
from experiments.training.recipes import Examples, build_part, data_group, load_examples

CLIPPED_NORM = 1.0  # of the gradient, at most


def train(cfg: DictConfig) -> None:
    """Trains the part that the config describes, or resumes it from `out`/checkpoint.pt.

    Raises UserError for missing packages, a missing earlier part, and a checkpoint in `out` that another config made.
    """
    with joined(cfg.device) as team:
        if cfg.part.batch % (cfg.part.micro * team.size):
            raise UserError(f"part.batch={cfg.part.batch}: must be a multiple of part.micro x processes")
        examples, held_out = load_examples(cfg)
        torch.manual_seed(cfg.seed)  # of the initial weights
        part = build_part(cfg, examples).to(team.device).to(memory_format=torch.channels_last)
        state = State.begin(part.network)
        progress = Progress(cfg, part, state, held_out, writes=team.rank == 0)
        loss_of = DistributedDataParallel(part) if team.size > 1 else part
        batches = micro_batches(cfg, examples, progress.steps, team)
        for _ in progress:
            step_of(cfg, loss_of, state, batches, team)
            progress.report()
        progress.finish()


def step_of(cfg: DictConfig, loss_of: nn.Module, state: "State", batches: Iterator[Any], team: "Team") -> None:
    """Takes one optimizer step on the mean loss of a batch, of which each process computes every `size`-th micro-batch.

    `loss_of` is the part, in DistributedDataParallel where there are several processes.
    """
    recipe, micros = cfg.part, cfg.part.batch // cfg.part.micro
    loss = torch.zeros((), device=team.device)
    for micro in range(team.rank, micros, team.size):
        g = generator_of(cfg.seed, state.step, micro)
        with contextlib.ExitStack() as last_one_synchronizes:
            if team.size > 1 and micro + team.size < micros:
                last_one_synchronizes.enter_context(cast(DistributedDataParallel, loss_of).no_sync())
            with torch.autocast(team.device.type, torch.bfloat16, enabled=cfg.bf16):
                share = loss_of(next(batches).to(team.device), g) * team.size / micros
            share.backward()
        loss += share.detach() / team.size
    if team.size > 1:
        dist.all_reduce(loss)
    settings = state.optimizer.param_groups[0]
    nn.utils.clip_grad_norm_(settings["params"], CLIPPED_NORM)
    settings["lr"] = learning_rate(state.step, recipe.steps, recipe.warmup, recipe.lr, recipe.get("cooldown"))
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.average(recipe.ema_decay)
    state.losses.append(loss)
    state.step += 1


def generator_of(seed: int, step: int, micro: int) -> torch.Generator:
    """Returns the CPU generator of all draws of one micro-batch.

    Its seed is a hash of the three numbers, because a CPU generator keeps only the lower 32 bits of its seed.
    """
    digest = hashlib.blake2b(f"{seed},{step},{micro}".encode(), digest_size=4).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))


def learning_rate(step: int, steps: int, warmup: int, peak: float, cooldown: int | None) -> float:
    """Returns a linear rise to `peak` over the warm-up, times a cosine that ends at 0.

    With a `cooldown` the rate stays at `peak` instead, until it falls by 1 - sqrt over that many last steps, which ends
    as low a loss (Haegele et al. 2024): so a training can be made longer, or ended early, before these steps.
    """
    if cooldown is None:
        left = 0.5 * (1 + math.cos(math.pi * step / steps))
    else:
        left = 1 - math.sqrt(max(0, step - (steps - cooldown)) / max(cooldown, 1))
    return peak * min(1.0, (step + 1) / max(warmup, 1)) * left


def micro_batches(cfg: DictConfig, examples: Examples, steps: range, team: "Team") -> Iterator[Any]:
    """Yields this process's micro-batches, step after step: every `size`-th of each batch, from the `rank`-th on."""
    batch, micro = cfg.part.batch, cfg.part.micro
    indices = (
        list(range(first, first + micro))
        for step in steps
        for first in range(step * batch + team.rank * micro, (step + 1) * batch, team.size * micro)
    )
    dataset = cast(Dataset, examples)
    loader = DataLoader(dataset, batch_sampler=indices, collate_fn=examples.collate, num_workers=cfg.workers)
    return iter(loader)


def cooled(recipe: Mapping[str, Any], step: int) -> bool:
    """Returns whether the learning rate has fallen by `step` because the training ends at `steps`."""
    cooldown = recipe.get("cooldown")
    return cooldown is None or step > recipe["steps"] - cooldown


@dataclass(frozen=True)
class Team:
    """The processes that share a training: those of torchrun, or this one alone."""

    rank: int
    size: int
    device: torch.device  # of this process


@contextlib.contextmanager
def joined(device_name: str) -> Iterator[Team]:
    """Joins the processes of a training for the length of a block. Several on GPUs have one GPU each.

    Raises UserError for a device that is not there, and for one GPU named to several processes.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = build.device(device_name)
    if size > 1 and device.type == "cuda":
        if device.index is not None:
            raise UserError(f"device={device_name}: each of {size} processes takes a GPU of its own: use device=cuda")
        device = build.device(f"cuda:{os.environ['LOCAL_RANK']}")
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(rank, size, device)
    finally:
        if size > 1:
            dist.destroy_process_group()


@dataclass
class State:
    """All that changes from step to step; a checkpoint holds it."""

    network: nn.Module
    ema: dict[str, Tensor]  # running averages of the network's parameters
    optimizer: torch.optim.Optimizer
    step: int = 0  # the number of steps taken
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # mean losses of `log_every` steps each
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last row of history

    @classmethod
    def begin(cls, network: nn.Module) -> "State":
        """Returns the state before the first step."""
        parameters = dict(network.named_parameters())
        trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
        # without weight decay, which would shrink the embeddings of all the tokens that no caption contains
        optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        return cls(network, {name: value.detach().clone() for name, value in parameters.items()}, optimizer)

    def average(self, decay: float) -> None:
        """Moves the running averages towards the parameters; at first they forget faster than `decay` says."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        parameters = [parameter.detach() for parameter in self.network.parameters()]
        torch._foreach_lerp_(list(self.ema.values()), parameters, 1 - decay)

    def save(self, path: Path, recipe: dict[str, Any]) -> None:
        """Writes a checkpoint; whatever happens meanwhile, `path` holds a whole one: the last, or this."""
        state = {name: getattr(self, name) for name in ("ema", "step", "seconds", "history", "losses")}
        state |= {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "recipe": recipe}
        with atomically(path) as part:
            torch.save(state, part)

    def load(self, path: Path, recipe: dict[str, Any]) -> None:
        """Takes over a checkpoint's values. Raises UserError if it was made under another recipe.

        The number of steps may be another if in neither recipe the cooldown has begun.
        """
        device = next(self.network.parameters()).device
        state = torch.load(path, map_location=device, weights_only=True)
        state["recipe"].setdefault("what is given", recipe["what is given"])  # which older checkpoints do not tell
        if not any(cooled(made["part"], state["step"]) for made in (state["recipe"], recipe)):
            state["recipe"]["part"]["steps"] = recipe["part"]["steps"]
        if changed := difference(state["recipe"], recipe):
            raise UserError(f"{path} is of another config ({changed}): choose another out=FOLDER")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("ema", "step", "seconds", "history", "losses"):
            setattr(self, name, state[name])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the network its averaged parameters, in evaluation mode, for the length of a block."""
        parameters = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        self.network.load_state_dict(self.ema, strict=False)
        self.network.eval()
        try:
            yield
        finally:
            self.network.load_state_dict(parameters, strict=False)
            self.network.train()


class Progress:
    """Iterates over the steps that are left, and shows, logs and stores how they go.

    `out`/checkpoint.pt is resumed if it is there. Where several processes train, only the first one `writes`.
    """

    def __init__(self, cfg: DictConfig, part: Part, state: State, held_out: Examples, writes: bool):
        self.cfg, self.part, self.state, self.held_out, self.writes = cfg, part, state, held_out, writes
        self.out = Path(cfg.out)
        self.checkpoint = self.out / "checkpoint.pt"
        # a checkpoint is resumed only under the recipe that made it; where things lie is no part of that
        self.recipe = resolved(OmegaConf.masked_copy(cfg, ["part", data_group(cfg), "seed", "bf16"]))
        self.recipe |= {"what is given": given_to(part)}
        self.out.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state.load(self.checkpoint, self.recipe)
        elif (self.out / "model").exists():
            raise UserError(f"{self.out}/model is another training's: choose another out=FOLDER, or put it elsewhere")
        self.steps = range(state.step, min(cfg.part.steps, cfg.stop_after or cfg.part.steps))
        self.logger = Logger(cfg.logger, resolved(cfg), self.out) if writes else None
        self.counted = self.saved = time.time()
        self.bar = tqdm(
            self.steps, cfg.part.name, initial=state.step, total=cfg.part.steps, mininterval=1, disable=not writes
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self.bar)

    def report(self) -> None:
        """Logs, draws and saves after a step, when it is time. Raises UserError if the loss is not finite."""
        cfg, state = self.cfg, self.state
        logs = state.step % cfg.log_every == 0
        saves = state.step == self.steps.stop or (self.writes and time.time() - self.saved > cfg.save_seconds)
        if logs or saves:
            mean = torch.stack(state.losses).mean().item()
            if not math.isfinite(mean):
                raise UserError(f"the loss is not finite near step {state.step}; {self.checkpoint} is from before")
        if logs:
            state.history.append({"step": state.step, "loss": mean})
            state.losses = []
            self.bar.set_postfix(loss=f"{mean:.4f}")
        if self.logger is not None:
            if logs:
                self.logger.log(state.history[-1])
            if state.step % cfg.picture_every == 0:
                self.draw(self.logger)
            if saves:
                self.save()

    def draw(self, logger: Logger) -> None:
        """Writes and logs what the averaged network can do by now: a picture, and numbers for the history."""
        with self.state.averaged():
            picture, measures = self.part.picture(self.held_out), self.part.measures(self.held_out)
        if measures:
            self.state.history.append({"step": self.state.step, **measures})
            logger.log(self.state.history[-1])
        if picture is not None:
            save_png(picture, self.out / "picture.png")
            logger.images("pictures", [{"step": self.state.step, "file": "picture.png"}], self.out)

    def save(self) -> None:
        """Writes the checkpoint, and the history for people."""
        now = time.time()
        self.state.seconds += now - self.counted
        self.counted = self.saved = now
        self.state.save(self.checkpoint, self.recipe)
        write(self.out / "history.jsonl", "".join(json.dumps(row) + "\n" for row in self.state.history))

    def finish(self) -> None:
        """Ends the log and, after the recipe's last step, writes what others use of the averaged network."""
        if self.logger is not None:
            self.logger.finish()
            if self.steps.stop == self.cfg.part.steps:
                with self.state.averaged():
                    say(self.part.finish(self.held_out, self.out))


def given_to(part: Part) -> str:
    """Returns a hash of some of the values that a part does not train: the autoencoder's and the text encoder's."""
    trained = {id(parameter) for parameter in part.network.parameters()}
    given = {name: value for name, value in part.named_parameters() if id(value) not in trained}
    return digest_of(repr(list(given)), [nn.ParameterList(given.values())]) if given else ""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Returns a config as plain Python values, its interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
