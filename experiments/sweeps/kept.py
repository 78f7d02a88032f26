"""What the cells of a sweep have in common, where one process runs them one after another: it is made once."""

from collections.abc import Callable
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments.run import build
from experiments.run.build import Loaded
from experiments.sweeps.progress import in_this_process

LOADED_BY = ("model", "networks", "device", "dtype", "compile")  # all that `build.loaded` reads of a config


class Kept(Callback):
    """Hydra's callback that keeps the models of a cell for the next one, and a cell's config from its check on."""

    sweeping: ClassVar[bool] = False
    models: ClassVar[tuple[Any, Loaded] | None] = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        Kept.sweeping, Kept.models = False, None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Kept.sweeping, Kept.models = in_this_process(config), None
        if Kept.sweeping:
            loader = GlobalHydra.instance().config_loader()
            loader.load_sweep_config = composed_once(loader.load_sweep_config)  # type: ignore[method-assign]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        Kept.sweeping, Kept.models = False, None

    @staticmethod
    def load(cfg: DictConfig) -> Loaded:
        """Returns the models of a cell's config: the last cell's if they are the same."""
        key = {name: OmegaConf.to_container(cfg, resolve=True)[name] for name in LOADED_BY}  # type: ignore[index, call-overload]
        if Kept.models is None or Kept.models[0] != key:
            Kept.models = None  # so that two models never lie in memory together
            found = key, build.loaded(cfg)
            Kept.models = found if Kept.sweeping else None
            return found[1]
        return Kept.models[1]


def composed_once(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Hydra's `load_sweep_config`, which composes a cell when the sweep is checked, and again when the cell runs."""
    checked: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        key = tuple(sweep_overrides)
        if key in checked:
            return checked.pop(key)
        return checked.setdefault(key, compose(master_config, sweep_overrides))

    return load_sweep_config
