"""For whoever has the hardware: build, verify, time, and one JSON to send back.

    python -m reflectrt.bench.on_device BUNDLE --against CPU_BUNDLE --out result.json

BUNDLE is exported with --target tensorrt or tensorrt-rtx, CPU_BUNDLE from the same checkpoint with --target cpu. Needs
no torch. What a step could not do is in the JSON as well, with its reason, and the steps after it are "not reached".
"""
