"""The error analysis of `verify-device`, for tests."""

from lmtrain.verify.device.numbers.rounding import BFLOAT16, FLOAT32, FLOAT64, TENSOR_FLOAT32, Perturbed, rounding_error

__all__ = ["BFLOAT16", "FLOAT32", "FLOAT64", "TENSOR_FLOAT32", "Perturbed", "rounding_error"]
