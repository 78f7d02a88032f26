"""CLIP score (Hessel et al. 2021): the cosine of a picture and its prompt in a CLIP, by open_clip."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tqdm import tqdm

from experiments.metrics import Bench, Result
from experiments.metrics.features import sha256
from experiments.metrics.folders import FinishedRun, read

EMBEDDED = Path(__file__).resolve().parents[2] / "ldm" / "weights" / "emoji_clip"
PAPERS = "ViT-g-14", "laion2b_s34b_b88k"


@dataclass(frozen=True)
class ClipScore:
    """100 cos(picture, prompt), in [-100, 100]; a picture with stages but no prompt: the mean over its stages' prompts.

    `model` is a folder with open_clip_config.json, or a name of open_clip's with `pretrained`, a tag or a file.
    None: the embedded CLIP for the embedded model's runs, else the segmentation-free paper's ViT-g-14.
    """

    model: str | None = None
    pretrained: str | None = None

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        model, pretrained = self.chosen(run)
        network, preprocess, tokenizer, about = load_clip(model, pretrained, bench.device)
        prompts = sorted({prompt for caption in run.captions for prompt in caption})
        context = network.context_length
        with torch.inference_mode():
            texts = [
                network.encode_text(tokenizer(prompts[i : i + bench.batch_size]).to(bench.device))
                for i in range(0, len(prompts), bench.batch_size)
            ]
            text_of = dict(zip(prompts, F.normalize(torch.cat(texts).float(), dim=-1), strict=True))
            scores: list[float] = []
            for i in tqdm(range(0, len(run.records), bench.batch_size), desc="clip_score", leave=False):
                images = torch.stack([preprocess(read(path)) for path in run.pictures.files[i : i + bench.batch_size]])
                seen = F.normalize(network.encode_image(images.to(bench.device)).float(), dim=-1)
                for image, caption in zip(seen, run.captions[i : i + bench.batch_size], strict=True):
                    scores.append(100 * torch.stack([image @ text_of[p] for p in caption]).mean().item())
        cut = [p for p in prompts if is_cut(tokenizer, p, context)]
        per_image = [{"file": r["file"], "value": score} for r, score in zip(run.records, scores, strict=True)]
        estimate = bench.bootstrap.mean(scores, run.captions)
        return Result(estimate, per_image=per_image, about=about | {"cut": cut}, warnings=cut_warnings(cut, context))

    def chosen(self, run: FinishedRun) -> tuple[str, str | None]:
        if self.model is None and run.emoji:
            return str(EMBEDDED), None
        name = self.model or PAPERS[0]
        return name, self.pretrained or (PAPERS[1] if name == PAPERS[0] else None)


def load_clip(model: str, pretrained: str | None, device: torch.device) -> tuple[Any, Callable, Callable, dict]:
    """The network, its picture and text preprocessing, and what is to be said of it. Raises ValueError."""
    import open_clip  # takes seconds

    folder = Path(model)
    try:
        if folder.is_dir() or folder == EMBEDDED:
            network, preprocess, digest = load_folder(folder)
            about = {"model": folder.name, "weights_sha256": digest}
            model = f"local-dir:{folder}"
        elif model not in open_clip.list_models():
            raise ValueError(f"model={model}: neither a folder nor a name of open_clip's, such as {PAPERS[0]}")
        elif pretrained is None:
            tags = open_clip.list_pretrained_tags_by_model(model)
            raise ValueError(f"model={model}: say pretrained=FILE, or one of {', '.join(tags) or 'no tags'}")
        else:
            network, preprocess = open_clip.create_model_from_pretrained(model, pretrained)
            about = {"model": model, "pretrained": pretrained}
    except (RuntimeError, OSError, KeyError) as error:  # of a missing file, a closed network or a wrong shape
        reason = str(error).splitlines()[0]
        raise ValueError(f"the weights {pretrained or 'in the folder'} of {model} cannot be had: {reason}") from error
    return network.to(device).eval(), preprocess, open_clip.get_tokenizer(model), about


def load_folder(folder: Path) -> tuple[Any, Callable, str]:
    """Network, picture preprocessing and hash of a folder as open_clip writes it, its weights in one file or in shards.

    Without a preprocess_cfg it takes pixels in [-1, 1], as experiments.parts trains it.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    files = sorted(folder.glob("open_clip_model*.safetensors"))
    if not files or not (folder / "open_clip_config.json").is_file():
        raise ValueError(f"no CLIP in {folder}: `python -m experiments.train part=small/clip` makes one")
    with quiet():
        network = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    network.load_state_dict({name: value for file in files for name, value in load_file(file).items()})
    settings = dict(network.visual.preprocess_cfg)
    if "preprocess_cfg" not in json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8")):
        settings |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return network, image_transform_v2(PreprocessCfg(**settings), is_train=False), sha256(*files)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """open_clip warns of a network without weights, which it gets right after."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def is_cut(tokenizer: Callable, prompt: str, context: int) -> bool:
    """Whether a prompt has more tokens than CLIP reads: with more room, something stands where padding would."""
    padding = tokenizer([""])[0, -1]
    return bool((tokenizer([prompt], context_length=8 * context)[0, context:] != padding).any())


def cut_warnings(cut: list[str], context: int) -> list[str]:
    if not cut:
        return []
    return [f"{len(cut)} prompts have more than {context} tokens, of which the rest was not read: {cut[0][:60]!r}, ..."]
