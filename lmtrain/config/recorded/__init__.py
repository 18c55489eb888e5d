"""What a saved run says: which overrides it can have recorded, and where its paths may lead."""
