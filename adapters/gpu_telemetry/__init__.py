"""GPUs of this host, read from NVIDIA's management library (NVML) through pynvml."""
