"""Optimizers, one per file. Each takes the model's named parameters and returns a `torch.optim.Optimizer`.

To add one, write `lmtrain/optimizer/NAME.py`, `conf/optimizer/NAME.yaml` and `tests/optimizer/test_NAME.py`; nothing
else has to change. `adamw.py` is the example to copy.
"""
