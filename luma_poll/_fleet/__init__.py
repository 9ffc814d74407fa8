"""The parts behind `luma_poll.dbos`."""
