"""Fits experiments and forked runs to other choices of optimizer, scheduler and model than they were written for."""
