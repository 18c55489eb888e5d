"""Says for each scenario which tables are drawn, and what must hold in them."""
