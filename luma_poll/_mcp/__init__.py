"""The parts behind `luma_poll.mcp`."""
