"""PickScore (Kirstain et al. 2023): which picture people would prefer for a prompt; a CLIP trained on their choices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.files import sha256
from experiments.metrics import Bench, Result, Unmeasurable, optional
from experiments.metrics.clip import cut_warnings
from experiments.metrics.folders import FinishedRun, read


@dataclass(frozen=True)
class PickScore:
    """exp(logit scale) cos(picture, prompt); a picture with stages but no prompt: the mean over its stages' prompts.

    Of two pictures of a prompt the better has the higher score: `against=FOLDER` gives the win-rate. `model` is a
    folder or hub id of a transformers CLIPModel, `processor` of its processor (None: the same).
    """

    model: str = "yuvalkirstain/PickScore_v1"
    processor: str | None = None

    @torch.inference_mode()
    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        network, processor = load_pick_score(self.model, self.processor or self.model, bench.device)
        context = network.config.text_config.max_position_embeddings
        scores: list[float] = []
        for i in tqdm(range(0, len(run.records), bench.batch_size), desc="pick_score", leave=False):
            captions = run.captions[i : i + bench.batch_size]
            prompts = sorted({prompt for caption in captions for prompt in caption})
            inputs = processor(
                images=[read(path) for path in run.pictures.files[i : i + bench.batch_size]],
                text=prompts,
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=context,
            )
            logits = network(**inputs.to(bench.device)).logits_per_image.float().cpu()
            for row, caption in zip(logits, captions, strict=True):
                scores.append(row[[prompts.index(prompt) for prompt in caption]].mean().item())
        every = sorted({prompt for caption in run.captions for prompt in caption})
        cut = [prompt for prompt in every if len(processor.tokenizer(prompt).input_ids) > context]
        per_image = [{"file": r["file"], "value": score} for r, score in zip(run.records, scores, strict=True)]
        about = {"model": Path(self.model).name, "weights_sha256": weights_sha256(Path(self.model)), "cut": cut}
        estimate = bench.bootstrap.mean(scores, run.captions)
        return Result(estimate, per_image=per_image, about=about, warnings=cut_warnings(cut, context))


def load_pick_score(model: str, processor: str, device: torch.device) -> tuple[Any, Any]:
    """Loads the network and its processor. Raises Unmeasurable if they are not there, or not a CLIP's."""
    transformers = optional("transformers")
    try:
        network = transformers.CLIPModel.from_pretrained(model)
        prepare = transformers.CLIPProcessor.from_pretrained(processor)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Unmeasurable(f"no PickScore at model={model}, processor={processor}: {reason}") from error
    return network.to(device).eval(), prepare


def weights_sha256(folder: Path) -> str | None:
    """Returns the hash of a local folder's weights, if they are in one file."""
    file = folder / "model.safetensors"
    return sha256(file) if file.is_file() else None
