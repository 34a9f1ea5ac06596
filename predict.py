"""Classifies your own pictures with a trained network: python predict.py run=RUN_FOLDER images=FOLDER_OR_FILE"""

import hydra
from omegaconf import DictConfig

from spatial_transformer.config import explained
from spatial_transformer.process import spin_briefly


@explained
@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(config: DictConfig) -> None:
    spin_briefly()
    from spatial_transformer.prediction import predict

    predict(config)


if __name__ == "__main__":
    main()
