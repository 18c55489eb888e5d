"""Helpers that the tests share: small token files and models, processes, servers, a browser."""
