"""Tests a finished run again, from its own folder: python evaluate.py run=RUN_FOLDER"""

import hydra
from omegaconf import DictConfig

from spatial_transformer.config import explained
from spatial_transformer.process import spin_briefly


@explained
@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    spin_briefly()
    from spatial_transformer.runner import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
