"""What a host has: devices and engines."""
