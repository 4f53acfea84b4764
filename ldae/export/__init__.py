"""Load trained encoders, and write them for timm and ONNX."""
