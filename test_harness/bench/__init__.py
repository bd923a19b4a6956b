"""What the service costs: admission, relay per token and per task, and the core's queue.

`run.py` is the entry (`make bench`). Method: one token = one SSE event = one HTTP chunk = one
write of a fake engine; a raw keep-alive client; CPU is utime + stime of the measured process tree
over a phase, from /proc. Wall-clock figures on a busy machine mean little, CPU and the ratios to
a peer measured in the same run hold. The peer is SGLang's Rust router in an environment of its own.

Modules: `engine_payloads` and `fake_engine` (what is upstream), `http1`, `dialects`, `load`,
`open_loop` (the client), `proc` and `peers` (what is measured), `relay`, `admission`, `core` (the
three measurements), `profiling`, `goals` and `report` (what comes out).
"""
