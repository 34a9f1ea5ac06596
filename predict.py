"""Predict your own pictures with a trained network: python predict.py NETWORK PICTURES"""

from omegaconf import DictConfig

from spatial_transformer.training.cli import entry_point
from spatial_transformer.utils.process import limit_spinning


@entry_point("predict", "run", "images")
def main(config: DictConfig) -> None:
    limit_spinning()
    from spatial_transformer.inference.predict import predict

    predict(config)


if __name__ == "__main__":
    main()
