"""Optimizers, one a file: each takes the model's named parameters and returns a `torch.optim.Optimizer`.

A new one is `lmtrain/optimizer/NAME.py`, `conf/optimizer/NAME.yaml` and `tests/optimizer/test_NAME.py`; nothing else
has to know of it. `adamw.py` is the example to copy.
"""
