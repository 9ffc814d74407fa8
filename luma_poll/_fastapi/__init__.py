"""The parts behind `luma_poll.fastapi`."""
