"""What the store uses of lz4."""
