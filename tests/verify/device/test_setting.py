"""Tests of the configs that the checks of a device compose."""

from pathlib import Path

from lmtrain.verify.device.setting import Setting


def test_checks_name_the_micro_batches_although_the_user_gives_a_global_batch(tmp_path: Path) -> None:
    setting = Setting(tmp_path, ["trainer.global_batch_size=64", "data.batch_size=auto", "system.device=cpu"])
    cfg = setting.small("llama")
    assert (cfg.data.batch_size, cfg.trainer.gradient_accumulation_steps, cfg.trainer.global_batch_size) == (2, 2, None)
