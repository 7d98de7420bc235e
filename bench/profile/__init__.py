"""`reflectrt profile`: where the time, the bytes and the memory of an answer go.

    media.py      a medium made up or read, with decoding timed apart from resizing
    recorder.py   an engine and a clock that remember what ran when: spans
    scenario.py   one round: a cold question, a follow-up, a free text
    stages.py     spans -> seconds of each stage, percentiles
    graph.py      an ONNX graph without its weights
    shapes.py     walked at given input sizes: every tensor's shape, by the operators' rules (shape_rules.py)
    work.py       operations and bytes counted from that
    ceilings.py   what the device can do at most, through the same library
    memory.py     peaks, weights, cache; which context would fit
    others.py     what other programs take meanwhile
    operators.py  ONNX Runtime's own times of every operator
    report.py     the result as dataclasses and versioned JSON
    trust.py      whether two profiles agree, what recording costs
    measure.py    all of it in one run; compare.py and against.py put others beside it

Nothing here imports torch unless it is asked to measure PyTorch; without onnx, work and ceilings are left out.
"""
