"""DECIDE: from what was seen to what goes: channels.py for channels, weights.py for single weights."""
