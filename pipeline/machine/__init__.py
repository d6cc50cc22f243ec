"""What this machine has: devices, processors, memory."""
