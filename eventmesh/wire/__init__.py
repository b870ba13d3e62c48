"""What a message is between services: CloudEvents 1.0, readable in any language."""
