"""Test a trained network: python evaluate.py RUN_DIRECTORY"""

from omegaconf import DictConfig

from spatial_transformer.training.cli import entry_point
from spatial_transformer.utils.process import limit_spinning


@entry_point("evaluate", "run")
def main(config: DictConfig) -> None:
    limit_spinning()
    from spatial_transformer.inference.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
