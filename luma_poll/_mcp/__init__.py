"""Behind the door `luma_poll.mcp`."""
