"""Each module is one Engine: how parameters, gradients and moments are spread over ranks."""
