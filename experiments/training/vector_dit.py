"""What is trained on latents of drawings: the diffusion transformer with its table of classes."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from experiments.emoji.world import settings_of
from experiments.files import UserError, as_user_error
from experiments.pictures import sheet, to_image
from experiments.training.parts import MEASURED_TENTHS, SHARD_BYTES, Part, read_checkpoint
from experiments.training.vector_parts import spread, unit_variance
from experiments.vectors.data import DrawingBatch, Drawings
from experiments.vectors.measures import latents_of
from experiments.vectors.raster import on_paper
from guidance import ClassifierFree, guided
from ldm import LatentDiffusion
from ldm.classes import ClassTable
from ldm.config import ClassesConfig, DiTConfig, ModelConfig, ScheduleConfig, VectorAutoencoderConfig
from ldm.dit import DiT
from ldm.files.rules import checked
from ldm.files.vectors import read_vector_autoencoder
from ldm.files.writing import write_folder
from ldm.svg.autoencoder import VectorAutoencoder
from samplers import ImageNoise, Schedule, add_noise, as_x_0, ddim
from samplers.predict import target

IMAGE_SIZE = 128  # pixels of a drawing's picture, unless one asks for more


class DiTPart(Part):
    """The transformer and its class table: L_simple (Ho et al. 2020, eq. 14) on a trained autoencoder's mean latents.

    A sample of q would be as wide as the prior in the many numbers that no drawing needs. The target is what the
    schedule's prediction names. A class gives way to the null class by chance, for classifier-free guidance. Where
    `dit.learn_sigma` says so, the loss is the hybrid of improved DDPM: `vlb_weight` times the variational bound is
    added, by which the variances learn and the prediction does not.
    """

    latents: Tensor  # [N, d] of the drawings

    def __init__(self, cfg: DictConfig, drawings: Drawings, autoencoder: Path):
        super().__init__()
        self.autoencoder, latents = load_vector_autoencoder(autoencoder, drawings)
        known = latents_of(self.autoencoder, drawings, torch.arange(drawings.count))
        self.register_buffer("latents", known, persistent=False)
        dit = DiTConfig(in_channels=latents.latent_width, **settings_of(cfg.dit))
        config = ModelConfig(
            schedule=ScheduleConfig(**settings_of(cfg.schedule)),
            image_size=IMAGE_SIZE,
            condition="classes",
            denoiser="dit",
            latents="drawings",
            classes=ClassesConfig(drawings.classes, dit.width, as_vector=True),
            dit=dit,
            drawings=latents,
            stroke=drawings.stroke,
        )
        try:
            self.config = checked(config, "part")
        except ValueError as error:
            raise UserError(str(error)) from error
        schedule = Schedule.of(self.config.schedule)
        if not isinstance(schedule, Schedule):
            raise UserError("part.schedule.kind=flow: this part learns on a variance-preserving schedule")
        self.schedule = schedule
        self.dit, self.classes = DiT(dit), ClassTable(self.config.classes)
        nn.init.normal_(self.classes.embedding.weight, std=0.02)
        self.network = nn.ModuleDict({"dit": self.dit, "classes": self.classes})
        self.class_dropout, self.vlb_weight = cfg.class_dropout, cfg.vlb_weight

    def forward(self, drawings: DrawingBatch, g: torch.Generator) -> Tensor:
        x_0 = self.latents[drawings.rows]
        dropped = torch.rand(len(x_0), generator=g) < self.class_dropout
        t = self.schedule.draw_t(len(x_0), g).to(x_0.device)
        eps = torch.randn(x_0.shape, generator=g).to(x_0.device)
        told = self.classes(torch.where(dropped.to(x_0.device), self.classes.null, drawings.classes))
        signal, noise = self.schedule.at(t)
        x_t = add_noise(x_0, eps, signal, noise)
        prediction, variance = self.dit.moments(x_t, t, told)
        wanted = target(self.config.schedule.prediction, x_0, eps, signal, noise)
        loss = F.mse_loss(prediction.float(), wanted)
        if variance is None:
            return loss
        kind = self.config.schedule.prediction
        guess = clean(kind, prediction.detach().float(), x_t, signal, noise)
        return loss + self.vlb_weight * variational_bound(self.schedule, x_0, x_t, t, guess, variance.float()).mean()

    def model(self) -> LatentDiffusion:
        """Returns the model that the transformer belongs to, with the weights of the moment."""
        return LatentDiffusion(self.dit, self.autoencoder, self.classes, self.config)

    @torch.no_grad()
    def picture(self, held_out: Drawings) -> Image.Image:
        """Returns what 20 classifier-free steps make of sixteen classes, four of each."""
        names = [held_out.classes[i] for i in spread(len(held_out.classes), 16).tolist()]
        model, prompts = self.model(), [name for name in names for _ in range(4)]
        predict = as_x_0(model.unet, self.config.schedule.prediction)
        denoise = guided(predict, ClassifierFree(2.0), model.conditions(prompts))
        x_T = ImageNoise(range(len(prompts)), (self.config.latent_channels,), model.device)()
        *_, (_, x_t, _) = ddim(denoise, x_T, self.schedule.steps(20))
        drawn = on_paper(model.draw(x_t), 64).unflatten(0, (len(names), 4)).transpose(0, 1)
        return sheet([[to_image(image) for image in row] for row in drawn], [""] * 4, names, cell=64)

    @torch.no_grad()
    def measures(self, held_out: Drawings) -> dict[str, float]:
        """Returns the mean squared error of x_0 at five levels of noise: the same drawings and noise every time."""
        chosen, g = spread(held_out.count, 512), torch.Generator().manual_seed(0)
        device = next(self.dit.parameters()).device
        x_0 = self.autoencoder.encode(held_out.sequences(chosen).to(device))[0].float()
        told = self.classes(held_out.labels[chosen].to(device))
        predict, errors = as_x_0(self.dit, self.config.schedule.prediction), {}
        for tenth in MEASURED_TENTHS:
            level = self.schedule.level(tenth * self.schedule.num_timesteps // 10)
            x_t = level.x_t(x_0, torch.randn(x_0.shape, generator=g).to(device))
            errors[f"x_0 error at {level.t:g}"] = F.mse_loss(predict(x_t, level, told), x_0).item()
        return errors

    def finish(self, held_out: Drawings, out: Path) -> str:
        """Writes the whole model, in 16 bits."""
        if not (out / "model").exists():
            write_folder(self.model(), out / "model", SHARD_BYTES, torch.float16)
        found = self.measures(held_out)
        return ", ".join(f"{name} {value:.4g}" for name, value in found.items()) + f": {out / 'model'}"


@torch.no_grad()
def load_vector_autoencoder(path: Path, drawings: Drawings) -> tuple[VectorAutoencoder, VectorAutoencoderConfig]:
    """Returns a trained autoencoder (its EMA weights, frozen) whose scale gives the drawings' latents unit variance.

    path  its checkpoint, or a folder with a finished one
    """
    if path.is_dir():
        with as_user_error("autoencoder: "):
            finished = read_vector_autoencoder(path)
        config, weights = finished.config, finished.state_dict()
    else:
        checkpoint = read_checkpoint(path, "vector/autoencoder")
        config = VectorAutoencoderConfig(**settings_of(checkpoint["recipe"]["part"]["autoencoder"]))
        weights = checkpoint["ema"]
    if config.commands != drawings.kinds.shape[1]:
        raise UserError(f"{path}: is of {config.commands} commands, and the drawings have {drawings.kinds.shape[1]}")
    autoencoder = VectorAutoencoder(config)
    autoencoder.load_state_dict(weights)
    scaled = unit_variance(autoencoder, config, drawings)
    out = VectorAutoencoder(scaled)
    out.load_state_dict(weights)
    return out.eval().requires_grad_(False), scaled


def clean(prediction: str, out: Tensor, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Returns the clean estimate [B, d] of what a network returned at levels signal, noise [B]."""
    signal, noise = (value.to(x_t.dtype)[:, None] for value in (signal, noise))
    if prediction == "x0":
        return out
    return (x_t - noise * out) / signal if prediction == "eps" else signal * x_t - noise * out


def variational_bound(
    schedule: Schedule, x_0: Tensor, x_t: Tensor, t: Tensor, guess: Tensor, variance: Tensor
) -> Tensor:
    """Returns the terms [B] of the variational bound at timesteps t [B], in bits for each number of a latent [B, d].

    Nichol & Dhariwal 2021, section 3.1: the model's log-variance is log beta_t and log beta~_t, mixed by (variance + 1)
    / 2 (eq. 15); its mean is the posterior's of its clean guess. Of t = 0, where images are discrete, the density.
    """
    t = t.cpu()
    a_t = schedule.alpha_bar[t]
    a_s = torch.where(t > 0, schedule.alpha_bar[(t - 1).clamp(min=0)], 1.0)
    beta = 1 - a_t / a_s
    first = schedule.alpha_bar[:2]
    least = (1 - first[1] / first[0]) * (1 - first[0]) / (1 - first[1])  # beta~ of t = 1, in the place of t = 0's zero
    posterior = torch.where(t > 0, beta * (1 - a_s) / (1 - a_t), least)
    of_x_0, of_x_t = a_s.sqrt() * beta / (1 - a_t), (a_t / a_s).sqrt() * (1 - a_s) / (1 - a_t)
    high, low, of_x_0, of_x_t = (value.to(x_0)[:, None] for value in (beta.log(), posterior.log(), of_x_0, of_x_t))

    share = (variance + 1) / 2
    logvar = share * high + (1 - share) * low
    mean, guessed = (of_x_0 * clean + of_x_t * x_t for clean in (x_0, guess))
    kl = 0.5 * (logvar - low - 1 + (low - logvar).exp() + (mean - guessed).square() * (-logvar).exp())
    density = 0.5 * (math.log(2 * math.pi) + logvar + (x_0 - guessed).square() * (-logvar).exp())
    return torch.where((t > 0).to(x_0.device)[:, None], kl, density).mean(dim=1) / math.log(2)
