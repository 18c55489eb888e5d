"""Proves that a killed run resumes bit for bit, and that a device computes as it must."""
