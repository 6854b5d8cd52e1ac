"""What the control plane tells about itself, to people and to the tools of the field. Values in, values out."""
