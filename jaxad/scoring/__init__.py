"""From descriptors to scores: neighbours and coresets of banks of patches, maps and image scores."""
