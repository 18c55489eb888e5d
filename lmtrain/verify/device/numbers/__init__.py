"""The checks of what a device computes, against float64 on the CPU."""
