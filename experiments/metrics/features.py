"""Features of pictures, and the Frechet distance between two sets of them.

Letters of shapes: N pictures, D features.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError

import torch
import torch.nn.functional as F
from hydra.utils import get_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from experiments.emoji.judge import WEIGHTS as JUDGE
from experiments.emoji.judge import Judge, JudgeOutput, load_judge
from experiments.files import UserError, say, sha256
from experiments.metrics import Bench, Unmeasurable, optional
from experiments.metrics.clip import PAPERS, load_clip
from experiments.metrics.folders import FinishedRun, Pictures, read, to_tensor

EXTRACTORS = {name: f"experiments.metrics.features.{name.title()}Features" for name in ("inception", "judge", "clip")}
PUBLISHED = "6726825d"  # the sha256 of torch-fidelity's Inception weights begins so


class Extractor(Protocol):
    """A network that sees features in pictures; made of its weights (None: its usual ones) and a device."""

    about: dict[str, Any]  # what the numbers depend on
    warnings: list[str]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features [B, D] and logits [B, classes] of images uint8 [B, 3, H, W]."""
        ...


@dataclass(frozen=True)
class Features:
    """What an extractor saw in a set of pictures."""

    values: Tensor  # float32 [N, D]
    logits: Tensor  # float32 [N, classes]


class InceptionFeatures:
    """torch-fidelity's Inception-V3, TensorFlow's of 2015: 2048 pooled features, and logits without their bias."""

    def __init__(self, weights: Path | None, device: torch.device):
        module = optional("torch_fidelity.feature_extractor_inceptionv3")
        path = inception_weights(weights, module.URL_INCEPTION_V3)
        digest = sha256(path)
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would run what is pickled in it
            network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
            raise UserError(f"{path}: not torch-fidelity's Inception weights: {str(error).splitlines()[0]}") from error
        self.network = network.to(device)
        self.device = device
        self.about = {
            "name": "inception",
            "weights_sha256": digest,
            "preprocessing": "299 px, bilinear as TensorFlow 1",
        }
        self.warnings = []
        if not digest.startswith(PUBLISHED):
            self.warnings = ["these are not torch-fidelity's published Inception weights: compare with no other number"]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(images.to(self.device))


class JudgeFeatures:
    """The emoji world's judge: its pooled features; its logits are those of the presence of each concept."""

    def __init__(self, weights: Path | None, device: torch.device):
        folder = weights or JUDGE
        self.judge = load_judge(folder, device)
        self.device = device
        side = self.judge.config.image_size
        self.about = {
            "name": "judge",
            "weights_sha256": sha256(folder / "model.safetensors"),
            "preprocessing": f"{side} px, bilinear if of another size",
        }
        self.warnings: list[str] = []

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.judge(judge_input(images.to(self.device), self.judge.config.image_size))
        return output.features, output.presence


class ClipFeatures:
    """The unit picture vectors of a CLIP: of open_clip's folder `weights`, or of ViT-g-14; it has no logits."""

    def __init__(self, weights: Path | None, device: torch.device):
        model, pretrained = (str(weights), None) if weights else PAPERS
        self.network, self.preprocess, _, self.about = load_clip(model, pretrained, device)
        self.device = device
        self.warnings: list[str] = []

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pictures = [self.preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
        seen = F.normalize(self.network.encode_image(torch.stack(pictures).to(self.device)).float(), dim=-1)
        return seen, seen[:, :0]


def judge_input(images: Tensor, side: int) -> Tensor:
    """Returns images uint8 [B, 3, H, W] as the judge takes them: [B, 3, side, side] in [-1, 1]."""
    pixels = images.float() / 127.5 - 1
    if pixels.shape[2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)


def inception_weights(given: Path | None, url: str) -> Path:
    """Returns the given file, or the cached one, downloading it. Raises UserError saying where to put it."""
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    where = f"download {url} and put it at {path}, or name it by the metric's weights=FILE"
    if given is not None and not path.is_file():
        raise UserError(f"weights={path}: there is no such file; {where}")
    if not path.is_file():
        say(f"Inception weights: from {url} to {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=PUBLISHED, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise Unmeasurable(f"no Inception weights here and no way to them: {where}") from error
    return path


def load_extractor(name: str | None, weights: str | None, run: FinishedRun, device: torch.device) -> Extractor:
    """Makes an extractor by its name or class. None: the judge for the embedded model's runs, else Inception."""
    name = name or ("judge" if run.emoji else "inception")
    try:
        extractor = get_object(EXTRACTORS.get(name, name))
    except (ImportError, ValueError) as error:
        raise UserError(f"features={name}: must be inception, judge or the full name of a class") from error
    return extractor(Path(weights) if weights else None, device)


@torch.inference_mode()
def extract(extractor: Extractor, pictures: Pictures, resize: int | None, bench: Bench) -> Features:
    """Raises Unmeasurable for fewer than 2 pictures, of which no covariance can be."""
    if len(pictures.files) < 2:
        raise Unmeasurable(f"{pictures.folder}: holds {len(pictures.files)} picture, and at least 2 are needed")
    batches = tqdm(pictures.batches(bench.batch_size, resize), desc=f"features of {pictures.folder.name}", leave=False)
    values, logits = zip(*((a.cpu(), b.cpu()) for a, b in map(extractor, batches)), strict=True)
    return Features(torch.cat(values), torch.cat(logits))


def rank_warnings(pictures: Pictures, features: Features) -> list[str]:
    """Warns of sets too small to span their features."""
    count, width = features.values.shape
    if count > width:
        return []
    return [
        f"{pictures.folder.name}: {count} pictures are no more than the {width} features, so their covariance has "
        f"rank {count - 1} at most and the distance is too high: compare it at this count alone"
    ]


def judge_outputs(judge: Judge, run: FinishedRun, bench: Bench) -> Iterator[tuple[int, JudgeOutput]]:
    """Yields what the judge finds in batches of a run's pictures, with the index of the first."""
    for i in tqdm(range(0, len(run.pictures.files), bench.batch_size), desc="judge", leave=False):
        images = [to_tensor(read(path))[None] for path in run.pictures.files[i : i + bench.batch_size]]
        pixels = torch.cat([judge_input(image, judge.config.image_size) for image in images])
        yield i, judge(pixels.to(bench.device))
