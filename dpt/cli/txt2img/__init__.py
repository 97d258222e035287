"""The sampling command."""
