"""Writes files so that they survive crashes, and reads files that may be damaged."""
