"""Fault injection: training killed, its files damaged, its disks full; it must resume bit for bit."""
