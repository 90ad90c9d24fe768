"""The network: `rdpnet.RDPNet` and its parts, from images to losses or instances."""
