"""Other engines, each in a process and an environment of its own, timed in turns with ours."""
