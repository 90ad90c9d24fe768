"""What this machine has for jrdp, tried and explained: `jrdp doctor`."""
