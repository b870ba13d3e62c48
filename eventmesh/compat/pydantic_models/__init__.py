"""Verdicts about pydantic models, which read and write differently from what their schemas say."""
