"""GPUs: found, handed to vfio-pci or divided, and told to Kata."""
