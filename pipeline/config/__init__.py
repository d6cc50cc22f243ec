"""What each command is asked: one frozen dataclass per command, whose fields are its arguments and options."""
