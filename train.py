"""Train and test a network: python train.py experiment=mnist model=st_cnn transform=tps seed=1

--help lists experiments, groups and settings.
"""

from omegaconf import DictConfig

from spatial_transformer.training.cli import entry_point
from spatial_transformer.utils.process import limit_spinning


@entry_point("train")
def main(config: DictConfig) -> float | None:
    limit_spinning()
    from spatial_transformer.training.runner import train  # here: --help does not wait for torch

    metrics = train(config)["metrics"]
    return metrics.get("val/best_error", metrics.get("val/error"))  # for sweepers that optimize


if __name__ == "__main__":
    main()
