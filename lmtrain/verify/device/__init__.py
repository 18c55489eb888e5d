"""The checks of `verify-device`: does this GPU or CPU compute, repeat, resume and perform as it must?"""
