"""The part of the typed clients that is the same for every operation.

Kept here as ordinary, linted Python; `codegen_client` copies these modules into
`generated/orchqueue_v1` beside the client that it writes from the contract.
"""
