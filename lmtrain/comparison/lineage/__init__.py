"""Where runs come from: forks of other runs, and trunks with their branches."""
