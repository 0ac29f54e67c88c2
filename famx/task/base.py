"""What every task shares: decoding a split, and counting errors the way the field does."""
