"""What this machine has: one file for each kind of device, for targets and executors alike.

They know no compiler and no artifact.
"""
