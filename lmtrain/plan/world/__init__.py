"""Plans a run of many processes: memory and traffic of each, its efficiency, time and cost."""
