"""Train one part of the embedded model: `python -m experiments.train part=small/autoencoder`, and so on.

Everything random is a function of (seed, step, micro-batch): scenes, noise, timesteps, dropped captions. So a run that
was stopped goes on from its checkpoint as if nothing had happened, to the last bit on the same machine, and several
processes (torchrun) share the micro-batches of a step among them and learn what one would.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from experiments.emoji.world import Batch, EmojiScenes, World, collate, load_atlas, numbers
from experiments.files import UserError, difference, say, write
from experiments.pictures import save_png
from experiments.run.logger import Logger
from experiments.training.parts import AutoencoderPart, ClipPart, JudgePart, Part, UNetPart


def build_part(cfg: DictConfig, scenes: EmojiScenes) -> Part:
    if cfg.part.name == "unet":
        return UNetPart(cfg.part, scenes, Path(cfg.autoencoder), Path(cfg.clip))
    kinds: dict[str, Callable[[DictConfig, EmojiScenes], Part]]
    kinds = {"autoencoder": AutoencoderPart, "clip": ClipPart, "judge": JudgePart}
    return kinds[cfg.part.name](cfg.part, scenes)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """A linear rise to `peak` over the warm-up, times a cosine that ends at 0."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Whatever happens meanwhile, `path` holds a whole checkpoint: the last one, or this."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def micro_batches(
    cfg: DictConfig, scenes: EmojiScenes, start: int, stop: int, rank: int, ranks: int
) -> Iterator[Batch]:
    """This process's micro-batches, step after step: every `ranks`-th of each batch, from the `rank`-th on."""
    batch, micro = cfg.part.batch, cfg.part.micro
    indices = [
        list(range(first, first + micro))
        for step in range(start, stop)
        for first in range(step * batch + rank * micro, (step + 1) * batch, ranks * micro)
    ]
    loader = DataLoader(
        scenes, batch_sampler=indices, collate_fn=partial(collate, world=scenes.world), num_workers=cfg.workers
    )
    return iter(loader)


@contextlib.contextmanager
def averaged(network: nn.Module, ema: dict[str, Tensor]) -> Iterator[None]:
    """The network with its averaged weights, for a while."""
    weights = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    network.load_state_dict(ema, strict=False)
    network.eval()
    yield
    network.load_state_dict(weights, strict=False)
    network.train()


def train(cfg: DictConfig) -> None:
    """Run the training that the config describes, or go on with it, from and to `out`/checkpoint.pt.

    Raises UserError for missing icons, a missing earlier part, and a checkpoint in `out` that another config made.
    """
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda is not available here: use device=cpu")
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if cfg.part.batch % (cfg.part.micro * ranks):
        raise UserError(f"part.batch={cfg.part.batch}: must be a multiple of part.micro x processes")
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cfg.device == "cuda" else "cpu"
    if ranks > 1:
        dist.init_process_group("nccl" if cfg.device == "cuda" else "gloo")
    world = World(**numbers(cfg.world))
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    scenes = EmojiScenes(world, atlas, "train", cfg.seed, length=max(cfg.part.steps * cfg.part.batch, 512))
    held_out = EmojiScenes(world, atlas, "held_out")
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(cfg.seed)  # of the initial weights
    part = build_part(cfg, scenes).to(device).to(memory_format=torch.channels_last)
    network = part.network
    weights = dict(network.named_parameters())
    trained = [weight for weight in weights.values() if weight.requires_grad]
    ema = {name: weight.detach().clone() for name, weight in weights.items()}
    # without weight decay, which would shrink the embeddings of all the tokens that no caption contains
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    start, seconds, history, losses = 0, 0.0, [], list[Tensor]()

    # a checkpoint goes on only under the recipe that made it; where things lie is no part of that
    recipe = plain(OmegaConf.masked_copy(cfg, ["part", "world", "seed", "bf16"]))
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if changed := difference(state["recipe"], recipe):
            raise UserError(f"{checkpoint} is of another config ({changed}): choose another out=FOLDER")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        ema, start, seconds, history = (state[key] for key in ("ema", "step", "seconds", "history"))
        losses = list(state["losses"])
    logger = Logger(cfg.logger, plain(cfg), out) if rank == 0 else None
    loss_of = DistributedDataParallel(part) if ranks > 1 else part

    stop = min(cfg.part.steps, cfg.stop_after or cfg.part.steps)
    micros = cfg.part.batch // cfg.part.micro  # in a step, over all processes
    batches = micro_batches(cfg, scenes, start, stop, rank, ranks)
    began = saved = time.time()
    bar = tqdm(
        range(start, stop), initial=start, total=cfg.part.steps, desc=cfg.part.name, mininterval=1, disable=rank > 0
    )
    for step in bar:
        loss = torch.zeros((), device=device)
        for micro in range(rank, micros, ranks):
            g = torch.Generator("cpu").manual_seed((cfg.seed * 2**32 + step) * 2**16 + micro)
            last = micro + ranks >= micros
            wait = loss_of.no_sync() if ranks > 1 and not last else contextlib.nullcontext()  # type: ignore[operator]
            with wait:
                with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.bf16):
                    share = loss_of(next(batches).to(device), g) * ranks / micros
                share.backward()
            loss += share.detach() / ranks
        if ranks > 1:
            dist.all_reduce(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, cfg.part.steps, cfg.part.warmup, cfg.part.lr)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(cfg.part.ema_decay, (1 + step) / (10 + step))  # at first the average forgets faster
        torch._foreach_lerp_(list(ema.values()), [weight.detach() for weight in weights.values()], 1 - decay)
        losses.append(loss)

        logs = (step + 1) % cfg.log_every == 0
        saves = step + 1 == stop or (rank == 0 and time.time() - saved > cfg.save_seconds)
        if logs or saves:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise UserError(f"the loss is not finite near step {step}; {checkpoint} holds the state before")
        if logs:
            history.append({"step": step + 1, "loss": mean})
            bar.set_postfix(loss=f"{mean:.4f}")
            losses = []
        if logger is not None and logs:
            logger.log(history[-1])
        if logger is not None and (step + 1) % cfg.picture_every == 0:
            with averaged(network, ema):
                picture = part.picture(held_out)
            if picture is not None:
                save_png(picture, out / "picture.png")
                logger.images("pictures", [{"step": step + 1, "file": "picture.png"}], out)
        if rank == 0 and saves:
            state = {"recipe": recipe, "step": step + 1, "seconds": seconds + time.time() - began, "history": history}
            state |= {"losses": losses, "network": network.state_dict(), "ema": ema}
            save_atomically(state | {"optimizer": optimizer.state_dict()}, checkpoint)
            write(out / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
            saved = time.time()
    if logger is not None:
        logger.finish()
        if stop == cfg.part.steps:
            with averaged(network, ema):
                say(part.finish(held_out, out))
    if ranks > 1:
        dist.destroy_process_group()


def plain(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
