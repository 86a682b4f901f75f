"""Pure functions and tiny classes: losses, metrics, meters, schedules, optimizers, averages, random numbers."""
