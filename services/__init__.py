"""The reference shop: four services that own their databases and talk only by messages."""
