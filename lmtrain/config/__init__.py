"""Composes a run's config from its groups, checks it, and builds its parts."""
