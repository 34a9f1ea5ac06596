"""Trains a network of the paper: python train.py experiment=mnist data.distortion=rts model=st_cnn transform=tps seed=1

--help lists experiments, groups and settings.
"""

import hydra
from omegaconf import DictConfig

from spatial_transformer.config import explained
from spatial_transformer.process import spin_briefly


@explained
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    spin_briefly()
    from spatial_transformer.runner import run  # only now: --help does not wait for torch

    run(config)


if __name__ == "__main__":
    main()
