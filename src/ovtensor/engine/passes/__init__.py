"""Passes over a model or its module: what makes it fast on a device, and workarounds."""
