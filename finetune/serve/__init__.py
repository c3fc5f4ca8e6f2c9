"""Serve a trained model over HTTP: images are uploaded, and their labels come back.

The modules, in the order in which a request passes through them:

- `server`: listens on an address until a signal stops it.
- `app`: the routes, and the page to drop images on; `answers` defines what they return.
- `uploads`: refuses what is too large or not an image.
- `networks` and `exported`: the model, that of a run folder or of an ONNX file, as `ServedModel` describes it.
- `batching`: collects the images of all requests, and predicts those together that wait together.

FastAPI and uvicorn are in the extra `serve`. A model in an ONNX file is served without PyTorch.
"""
