"""Checks the config, overrides and paths that a saved run recorded, before anything is done with them."""
