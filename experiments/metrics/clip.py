"""CLIPs of open_clip, for the metrics that look at pictures through one."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.files import WEIGHTS, UserError, embedded, sha256
from experiments.metrics import Unmeasurable
from experiments.metrics.folders import FinishedRun

EMBEDDED = WEIGHTS / embedded("clip")


PAPERS = "ViT-g-14", "laion2b_s34b_b88k"


def load_clip(model: str, pretrained: str | None, device: torch.device) -> tuple[Any, Callable, Callable, dict]:
    """Returns the network, its picture and text preprocessing, and its description.

    Raises Unmeasurable where the weights are not to be had, and ValueError for a name that there is not.
    """
    import open_clip  # takes seconds

    folder = Path(model)
    try:
        if folder.is_dir() or folder == EMBEDDED:
            network, preprocess, digest = load_folder(folder)
            about = {"model": folder.name, "weights_sha256": digest}
            model = f"local-dir:{folder}"
        elif model not in open_clip.list_models():
            raise UserError(f"model={model}: neither a folder nor a name of open_clip's, such as {PAPERS[0]}")
        elif pretrained is None:
            tags = open_clip.list_pretrained_tags_by_model(model)
            raise UserError(f"model={model}: say pretrained=FILE, or one of {', '.join(tags) or 'no tags'}")
        else:
            network, preprocess = open_clip.create_model_from_pretrained(model, pretrained)
            about = {"model": model, "pretrained": pretrained}
    except (RuntimeError, OSError, KeyError) as error:  # of a missing file, a closed network or a wrong shape
        reason = str(error).splitlines()[0]
        raise Unmeasurable(f"the weights {pretrained or 'in the folder'} of {model} cannot be had: {reason}") from error
    return network.to(device).eval(), preprocess, open_clip.get_tokenizer(model), about


def load_folder(folder: Path) -> tuple[Any, Callable, str]:
    """Loads network, picture preprocessing and hash of a folder as open_clip writes it, its weights whole or in shards.

    Without a preprocess_cfg it takes pixels in [-1, 1], as experiments.training.parts trains it.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    files = sorted(folder.glob("open_clip_model*.safetensors"))
    if not files or not (folder / "open_clip_config.json").is_file():
        raise UserError(f"no CLIP in {folder}: `python -m experiments.train part=small/clip` makes one")
    with quiet():
        network = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    network.load_state_dict({name: value for file in files for name, value in load_file(file).items()})
    settings = dict(network.visual.preprocess_cfg)
    if "preprocess_cfg" not in json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8")):
        settings |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return network, image_transform_v2(PreprocessCfg(**settings), is_train=False), sha256(*files)


@dataclass(frozen=True, eq=False)
class PixelClip:
    """A CLIP as guidance.ClipGuided looks through it; mean and std are those of pixels in [0, 1]."""

    network: nn.Module
    tokenizer: Callable
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def images(self, pictures: Tensor) -> Tensor:
        mean, std = (torch.tensor(value, device=pictures.device)[:, None, None] for value in (self.mean, self.std))
        return F.normalize(self.network.encode_image((pictures / 2 + 0.5 - mean) / std).float(), dim=1)  # type: ignore[operator]

    def texts(self, prompts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(list(prompts)).to(next(self.network.parameters()).device)
        with torch.no_grad():
            return F.normalize(self.network.encode_text(ids).float(), dim=1)  # type: ignore[operator]


@lru_cache(maxsize=1)
def pixel_clip(model: str | None = None, pretrained: str | None = None) -> PixelClip:
    """Returns a CLIP for guidance: a folder's, or one of open_clip's by name; None is the embedded one.

    Raises Unmeasurable where the weights are not to be had, and UserError for a name that there is not.
    """
    network, preprocess, tokenizer, _ = load_clip(model or str(EMBEDDED), pretrained, torch.device("cpu"))
    (normalize,) = [part for part in preprocess.transforms if hasattr(part, "mean")]  # type: ignore[attr-defined]
    size = network.visual.image_size
    side = size if isinstance(size, int) else size[0]
    return PixelClip(network.requires_grad_(False), tokenizer, side, tuple(normalize.mean), tuple(normalize.std))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences open_clip's warning of a network without weights, which it gets right after."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def is_cut(tokenizer: Callable, prompt: str, context: int) -> bool:
    """Whether a prompt has more tokens than CLIP reads: with more room, something stands where padding would."""
    padding = tokenizer([""])[0, -1]
    return bool((tokenizer([prompt], context_length=8 * context)[0, context:] != padding).any())


def cut_warnings(cut: list[str], context: int) -> list[str]:
    if not cut:
        return []
    return [f"{len(cut)} prompts have more than {context} tokens, of which the rest was not read: {cut[0][:60]!r}, ..."]


def clip_meant(model: str | None, pretrained: str | None, run: FinishedRun) -> tuple[str, str | None]:
    """Returns the CLIP to use: the one named, else the embedded one for the embedded model's runs, else the paper's."""
    if model is None and run.emoji:
        return str(EMBEDDED), None
    name = model or PAPERS[0]
    return name, pretrained or (PAPERS[1] if name == PAPERS[0] else None)
