"""Plain network modules."""
