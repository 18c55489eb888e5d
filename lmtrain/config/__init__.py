"""A run's config: composed from its groups, checked, and built into parts."""
