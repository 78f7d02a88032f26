"""CLIP score (Hessel et al. 2021): the cosine of a picture and its prompt in a CLIP, by open_clip."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from experiments.metrics import Bench, Result
from experiments.metrics.clip import clip_meant, cut_warnings, is_cut, load_clip
from experiments.metrics.folders import FinishedRun, read


@dataclass(frozen=True)
class ClipScore:
    """100 cos(picture, prompt), in [-100, 100]; a picture with stages but no prompt: the mean over its stages' prompts.

    `model` is a folder with open_clip_config.json, or a name of open_clip's with `pretrained`, a tag or a file.
    None: the embedded CLIP for the embedded model's runs, else the segmentation-free paper's ViT-g-14.
    """

    model: str | None = None
    pretrained: str | None = None

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        model, pretrained = clip_meant(self.model, self.pretrained, run)
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
