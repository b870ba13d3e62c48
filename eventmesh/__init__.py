"""Services that own their databases and talk only by typed, versioned messages."""
