"""What a running mesh says about itself."""
