"""The classifier of noisy latents, as it is trained."""

from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from experiments.emoji.truth import device_of
from experiments.emoji.world import Batch, EmojiScenes, batch_of
from experiments.files import as_user_error
from experiments.training.parts import Part, sample_posterior
from ldm import load_model
from ldm.classifier import ClassifierConfig, LatentClassifier
from ldm.files.classifiers import write_classifier
from samplers import Schedule, add_noise


class ClassifierPart(Part):
    """Which concept stands in a scene, told from its noisy latent (Dhariwal & Nichol 2021, section 4).

    The latents and the noise are those of a model. A scene with several concepts is as much of each: the loss is the
    cross-entropy with shares that sum to one.
    """

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes):
        super().__init__()
        with as_user_error("part.model: "):
            model = load_model(cfg.model)
        self.autoencoder, latents = model.autoencoder, model.config.autoencoder
        self.schedule = Schedule.of(model.config.schedule)
        concepts, channels = tuple(scenes.world.concepts), tuple(cfg.channels)
        self.config = ClassifierConfig(
            concepts, latents.latent_channels, channels, cfg.norm_groups, model.config.autoencoder.scale
        )
        self.network: LatentClassifier = LatentClassifier(self.config)

    def forward(self, scenes: Batch, g: torch.Generator) -> Tensor:
        x_0 = self.latents(scenes, g)
        t = self.schedule.draw_t(len(x_0), g).to(x_0.device)
        log_p = self.network(self.noised(x_0, t, g), t).log_softmax(dim=1)
        return -(log_p * self.shares(scenes)).sum(dim=1).mean()

    @torch.no_grad()
    def latents(self, scenes: Batch, g: torch.Generator) -> Tensor:
        mean, logvar = self.autoencoder.encode(scenes.pixels())
        return sample_posterior(mean.float(), logvar.float(), g)

    def noised(self, x_0: Tensor, t: Tensor, g: torch.Generator) -> Tensor:
        eps = torch.randn(x_0.shape, generator=g).to(x_0.device)
        return add_noise(x_0, eps, *self.schedule.at(t)).contiguous(memory_format=torch.channels_last)

    def shares(self, scenes: Batch) -> Tensor:
        """Returns [B, K], what of each scene is each concept."""
        labels = scenes.labels.long().flatten(1)
        present = F.one_hot(labels, len(self.config.classes) + 1).amax(dim=1)[:, 1:].float()
        return present / present.sum(dim=1, keepdim=True).clamp(min=1)

    def picture(self, scenes: EmojiScenes) -> None:
        return None

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        if not (out / "model").exists():
            write_classifier(self.network, out / "model")
        found = [f"{share:.0%} at t={t}" for t, share in self.accuracy(held_out).items()]
        return f"of 200 held-out scenes, a concept of theirs found in {', '.join(found)}: {out / 'model'}"

    @torch.no_grad()
    def accuracy(self, scenes: EmojiScenes, count: int = 200, micro: int = 50) -> dict[int, float]:
        """Returns the share of scenes whose likeliest class stands in them, at three levels of noise."""
        g, device, found = torch.Generator().manual_seed(0), device_of(self.network), dict[int, float]()
        for t in (0, self.schedule.num_timesteps // 4, self.schedule.num_timesteps // 2):
            right = list[float]()
            for i in range(0, count, micro):
                some = batch_of(scenes, range(i, i + micro)).to(device)
                times = torch.full((micro,), t, device=device)
                best = self.network(self.noised(self.latents(some, g), times, g), times).argmax(dim=1, keepdim=True)
                right += (self.shares(some).gather(1, best) > 0).flatten().float().tolist()
            found[t] = fmean(right)
        return found
