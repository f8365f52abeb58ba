"""A torch module as an OpenVINO model that runs; knows nothing of diffusers and transformers."""
