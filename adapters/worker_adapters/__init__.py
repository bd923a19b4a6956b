"""Engine adapters: one package per engine behind `adapter_api`, found through entry points."""
