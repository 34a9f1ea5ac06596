"""Wrong settings are refused before anything is built."""

import sys

import pytest
import pytorch_lightning as pl
import torch
from omegaconf.errors import OmegaConfBaseException

from spatial_transformer.training.build import build, component
from spatial_transformer.training.validation import (
    accepted_names,
    find_target,
    validate,
)
from spatial_transformer.utils.errors import UsageError

EARLY = "_target_: pytorch_lightning.callbacks.EarlyStopping"
SWA = "_target_: pytorch_lightning.callbacks.StochasticWeightAveraging"
REFUSED = {
    "+data.batchsize=3": r"Unknown setting data\.batchsize of .*MnistData\. Did you mean 'batch_s",
    "+model.widht=3": r"Unknown setting model\.widht.*'width'",
    "+recipe.stepz=3": r"Unknown setting recipe\.stepz",
    "+transform.points=3": r"Unknown setting model\.transform\.points .*Affine",
    "data._target_=os.system": r"data\._target_=os.system is not a .*\.BatchedData",
    "data._target_=no.module": r"no\.module does not exist\.",
    "task._target_=pytorch_lightning.LightningModule": r"is not a .*Classification",
    "model._target_=spatial_transformer.paper": r"model\._target_=.* is not callable",
    "recipe.optimizer._target_=torch.optim.Adamm": r"Adamm does not exist.*'Adam'",
    "recipe.optimizer._target_=torch.nn.Linear": r"is not a .*\.Optimizer",
    "+trainer.max_step=1": r"Unknown setting trainer\.max_step .* Did you mean 'max_steps'",
    "trainer.max_steps=0": r"trainer\.max_steps must be a positive integer, got 0",
    "trainer.log_every_n_steps=0": r"trainer\.log_every_n_steps must be a positive integer",
    "trainer.max_steps=-1": r"trainer\.max_steps must be a positive integer, got -1",
    "+trainer.max_epochs=0": r"trainer\.max_epochs must be a positive integer, got 0",
    "recipe.validate_every=0": r"recipe\.validate_every must be a positive integer",
    "trainer.val_check_interval=00:00:05:00": r"val_check_interval must be a positive integer",
    "trainer.max_steps=ten": r"trainer\.max_steps must be int, got 'ten'",
    "data.batch_size='64'": r"data\.batch_size must be int, got '64'",
    f"+callbacks.x={{{EARLY}, monitor: [1]}}": r"callbacks\.x\.monitor must be str, got \[1\]",
    "+callbacks.x={_target_: os.getcwd}": r"callbacks\.x\._target_=os\.getcwd is not a .*Callback",
    f"+callbacks.x={{{SWA}, swa_lrs: 0.01}}": r"callbacks\.x counts epochs.*EMAWeightAveraging",
    "+callbacks.x=3": r"callbacks\.x must be a component with a _target_, got 3",
    "recipe.spsa_delta=0.1": r"recipe\.spsa_delta=0\.1 has no effect.*spsa_delta=null",
    "trainer.precision=bf16-true": r"trainer\.precision must be .*, got 'bf16-true'",
    "trainer.check_val_every_n_epoch=1": r"check_val_every_n_epoch must be null .*validate_every",
    "++trainer.limit_test_batches=0": r"limit_test_batches must be positive",
    "++trainer.limit_val_batches=0": r"limit_val_batches must be positive",
    "++trainer.limit_train_batches=0": r"limit_train_batches must be positive",
    "++trainer.accumulate_grad_batches=0": r"accumulate_grad_batches must be a positive integer",
    "++trainer.overfit_batches=1": r"overfit_batches must be 0 .*debug=overfit",
    "++trainer.fast_dev_run=true": r"fast_dev_run must be false .*debug=fdr",
    "checkpoint_minutes=-1": r"checkpoint_minutes must be 0 or more",
    "model.transform=null": r"model=st_fcn cannot have transform",
    "label=a/b": r"label must begin with a letter .*no slashes, got 'a/b'",
    "transform=none": r"model=st_fcn cannot have transform=none\. Choose",
}


@pytest.mark.parametrize("override", REFUSED)
def test_wrong_setting_is_refused_by_name(composed, override):
    config = composed(override)
    with pytest.raises(UsageError, match=REFUSED[override]) as caught:
        validate(config)
    assert "_target_'" not in str(caught.value), "suggested"


def test_setting_that_does_not_go_with_the_experiment_is_refused(composed):
    with pytest.raises(UsageError, match=r"model=fcn cannot have transform=tps\. Set"):
        validate(composed("model=fcn", "transform=tps"))
    with pytest.raises(UsageError, match=r"recipe\.label_smoothing=0\.1 has no effect.*=0\.0"):
        validate(composed("experiment=colocalisation", "recipe.label_smoothing=0.1"))
    with pytest.raises(UsageError, match=r"recipe\.dropout=0\.3 has no effect.*model=frozen_fcn "):
        validate(composed("experiment=mnist_frozen", "recipe.dropout=0.3"))
    for limit in (9, 1, 0.5):
        words = [f"++trainer.limit_train_batches={limit}", "++trainer.accumulate_grad_batches=4"]
        message = rf"limit_train_batches must be a multiple .*, got {limit} and 4"
        with pytest.raises(UsageError, match=message):
            validate(composed(*words))
    validate(composed("++trainer.limit_train_batches=1.0", "++trainer.accumulate_grad_batches=4"))


def test_option_that_cannot_be_read_from_a_result_is_refused(composed):
    config = composed("label=mine")
    config.choices.model = "folder/net"  # of conf/model/folder/net.yaml
    with pytest.raises(UsageError, match=r"model must be letters, .*, got 'folder/net'"):
        validate(config)


@pytest.mark.parametrize("value", ["${nothing}", "???"])
def test_missing_value_is_refused_by_name(composed, value):
    with pytest.raises(OmegaConfBaseException) as caught:
        validate(composed(f"model.width={value}"))
    assert caught.value.full_key == "model.width"


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_clipping_with_a_fused_optimizer_is_refused_as_by_lightning(composed, name):
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = getattr(torch.optim, name)(parameters, lr=0.1, fused=True)
    plugin = pl.plugins.MixedPrecision("bf16-mixed", "cpu")
    with pytest.raises(RuntimeError, match="fused"):
        plugin.clip_gradients(optimizer, 1.0)
    overrides = ["~recipe.optimizer.weight_decay", f"recipe.optimizer._target_=torch.optim.{name}"]
    overrides += ["+trainer.gradient_clip_val=1.0", "recipe.scheduler=null"]
    for precision in ("bf16-mixed", "16-mixed"):
        config = composed(*overrides, f"trainer.precision={precision}")
        with pytest.raises(UsageError, match=r"Set recipe\.optimizer\.fused=false"):
            validate(config)
    validate(composed(*overrides))
    validate(composed(*overrides, "trainer.precision=bf16-mixed", "recipe.optimizer.fused=false"))


def test_refusal_by_a_library_names_the_setting(composed):
    with pytest.raises(UsageError, match=r"recipe \(torch\.optim\.AdamW\): .*rate: -1"):
        build(composed("recipe.optimizer.lr=-1"))
    with pytest.raises(UsageError, match=r"logger\.x \(.*MLFlowLogger\): .*pip install -U 'mlflow"):
        component({"_target_": "pytorch_lightning.loggers.MLFlowLogger"}, "logger.x")
    with pytest.raises(UsageError, match=r"trainer \(.*Trainer\): .devices. selected with"):
        component({"_target_": "pytorch_lightning.Trainer", "devices": "two"}, "trainer")


def test_unknown_annotation_is_not_checked(composed, tmp_path, monkeypatch):
    arguments = "size: 'Nowhere', width: 'Nowhere[3]' = 1, deep: {'not': 'a type'} = 2, classes=10"
    (tmp_path / "odd.py").write_text(f"def net({arguments}): ...")
    monkeypatch.syspath_prepend(tmp_path)
    validate(composed("model=custom", "model._target_=odd.net", "+model.width=3", "+model.deep=4"))


def test_error_in_a_module_of_the_user_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imports_nothing.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "divides.py").write_text("1 / 0\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        find_target("imports_nothing.Net")
    with pytest.raises(ZeroDivisionError):
        find_target("divides.Net")
    assert find_target("pathlib.Path.cwd")()


def test_arguments_of_base_classes_are_accepted(tmp_path, monkeypatch):
    (tmp_path / "tasks_of_mine.py").write_text(
        "from spatial_transformer.tasks.classification import Classification\n"
        "class Mine(Classification):\n"
        "    def __init__(self, margin=1.0, **more):\n        super().__init__(**more)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert accepted_names("tasks_of_mine.Mine") >= {"margin", "network", "label_smoothing"}
    sys.modules.pop("tasks_of_mine")
