"""How commands are declared, called and printed."""
