"""Tests a finished run again, from its own folder: python evaluate.py run=RUN_FOLDER"""

from omegaconf import DictConfig

from spatial_transformer.training.cli import entry_point
from spatial_transformer.utils.process import limit_spinning


@entry_point("evaluate")
def main(config: DictConfig) -> None:
    limit_spinning()
    from spatial_transformer.inference.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
