"""One ratio or target -> how many channels every group keeps."""
