import json
from pathlib import Path

import open_clip
import pytest
from folders import CLIP, JUDGE, randomise

from experiments.emoji.judge import Judge, save_judge
from ldm.files.writing import write_shards


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    save_judge(randomise(Judge(JUDGE)), folder)
    return folder


@pytest.fixture(scope="module", params=[None, 20_000], ids=["one file", "shards"])
def clip_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    network = randomise(open_clip.model.CLIP(**CLIP))
    write_shards(network.state_dict(), folder, "open_clip_model", request.param)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    return folder
