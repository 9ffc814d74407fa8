"""Behind the door `luma_poll.fastapi`."""
