"""Measures the speed of lmtrain against that of the machine."""
