"""The datacentre GPU measured: the 7B shape with random weights, against transformers in the same run."""
