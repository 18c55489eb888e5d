"""Proves that a killed run resumes bit for bit."""
