"""ONNX operators as te definitions: what is computed, over logical indices; never how, and never in which layout."""
